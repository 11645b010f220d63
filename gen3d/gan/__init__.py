"""3-D GANs: networks, the adversarial step, inference and inversion.

Every user of a trained generator (sheets, films, meshes, inversion,
evaluation, previews) goes through the record Generator3D. A new kind of
generator needs a builder of this record, such as gan/eg3d.py, and an entry in
gan/build.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import traverse_util

# By name: this package may have modules named cameras or mesh.
from gen3d.ops.cameras import Camera
from gen3d.ops.mesh import Mesh

NOISE = 'noise_const'  # last part of the name of a noise buffer


class Generated(NamedTuple):
  """Images of N objects, each from its camera.

  Colors are in about [-1, 1]. The last three have the resolution of the
  volume rendering, r; the image has the R pixels a side of
  Generator3D.image_size(r).
  """
  image: Any      # [N, R, R, 3]
  image_raw: Any  # [N, r, r, 3] as rendered, before super-resolution
  depth: Any      # [N, r, r] along the ray
  opacity: Any    # [N, r, r] in [0, 1]


# (variables, z [N, Z], camera or None, psi, cutoff) -> ws [N, L, D]
Map = Callable[
    [Any, jax.Array, Camera | None, float, int | None], jax.Array]
# (variables, ws [N, L, D], noise, key or None) -> representation
Synthesize = Callable[[Any, jax.Array, str, jax.Array | None], Any]
# (variables, representation, ws, camera [N], size, key or None) -> Generated
Render = Callable[
    [Any, Any, jax.Array, Camera, int, jax.Array | None], Generated]
# (variables, representation of one object, resolution) -> Mesh
ExtractMesh = Callable[[Any, Any, int], Mesh]
# (variables, representation of one object, points [N, 3]) -> colors [N, 3]
Color = Callable[[Any, Any, Any], Any]


def noise_buffers(variables: Any) -> dict[str, jax.Array]:
  """{path: [H, H]} of all leaves named 'noise_const'; {} where none are."""
  flat: Any = traverse_util.flatten_dict(variables, sep='/')
  return {path: x for path, x in flat.items()
          if path.rpartition('/')[2] == NOISE}


class Generator3D(NamedTuple):
  """A generator of 3-D objects, as functions of its variables.

  Variables are a nested dict of collections; 'params' is what pivotal tuning
  changes, the other collections (buffers) stay. All functions but `mesh` can
  be traced by JAX. The representation is separate from the rendering, so that
  a film computes it once. `noise_buffers` is a function, since a network may
  own buffers that no image depends on (EG3D's super-resolution).

  Attributes:
    map: (variables, z [N, Z], camera [N] or None, psi, cutoff) -> ws [N, L,
      D]. `camera` is the camera conditioning; None for the generator's
      default. Truncation moves the first `cutoff` layers (None: all) to psi
      times their distance from the mean of w.
    synthesize: (variables, ws, noise, key) -> the representation that all
      views of an object share, such as tri-planes, with leading axis N.
      `noise` is 'const' for the noise buffers, 'random' (which needs a key)
      or 'none'.
    render: (variables, representation, ws, camera [N], size, key) ->
      Generated, with `size` rays a side. Samples along rays are drawn where a
      key is given, else in the middle of their intervals.
    mesh: (variables, representation with N = 1, resolution of the grid) ->
      ops.mesh.Mesh in world units, colored as the raw image. Raises
      ops.mesh.EmptyField where there is no surface.
    color: (variables, representation with N = 1, points [N, 3]) -> colors
      [N, 3] in [0, 1], from which the mesh's texture is baked; compiled for
      ops.mesh.CHUNK points.
    sample_camera: key -> Camera, from the distribution of the training data
      or a prior.
    z_dim: Z, size of the latent.
    num_ws: L, number of layers that get a w.
    bound: half the side of the cube around the origin that holds the object.
    image_size: size of the rendering -> pixels a side of the image.
    background: 'white' or 'black', behind the object.
    noise_buffers: variables -> {path: [H, H]} of the buffers that `synthesize`
      reads at noise='const'.
    absolute_pose: whether objects are in the world of the training's cameras.
      Generators that learned from pictures without cameras have a world of
      their own, whose orientation is arbitrary.
    solid: whether the mesh encloses a volume; a depth map's does not.
  """
  map: Map
  synthesize: Synthesize
  render: Render
  mesh: ExtractMesh
  color: Color
  sample_camera: Callable[[jax.Array], Camera]
  z_dim: int
  num_ws: int
  bound: float
  image_size: Callable[[int], int]
  background: str
  noise_buffers: Callable[[Any], dict[str, jax.Array]] = noise_buffers
  absolute_pose: bool = True
  solid: bool = True


class Official(NamedTuple):
  """A generator of an official checkpoint.

  Attributes:
    build: (front camera, key -> camera) -> Generator3D.
    variables: of the generator, the average where the file has one.
    size: rays a side of a rendering.
    camera: typical camera, see gan/inference.py.
  """
  build: Callable[[Camera, Callable[[jax.Array], Camera]], Generator3D]
  variables: Any
  size: int
  camera: dict[str, Any]
