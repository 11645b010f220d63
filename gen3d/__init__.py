"""gen3d: 3-D objects out of 2-D image models, in JAX and Flax."""
