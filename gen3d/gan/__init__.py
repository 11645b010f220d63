"""3-D GANs: networks, the adversarial step, inference and inversion."""
