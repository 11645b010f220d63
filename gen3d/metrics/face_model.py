"""The face model of Deep3DFaceRecon: shapes, poses and depth maps of faces.

A linear model of the front of a head: the Basel Face Model 2009 (Paysan et al.)
with the expressions of Guo et al. (1708.00980), cropped to 35,709 vertices. It
is licensed by the University of Basel and not part of this project; you supply
a folder, that is the folder BFM of Deep3DFaceRecon_pytorch, with either
BFM_model_front.mat, which that code writes, or the files that it is made from:
01_MorphableModel.mat (Basel), Exp_Pca.bin (Guo et al.), and BFM_front_idx.mat,
BFM_exp_idx.mat, facemodel_info.mat, std_exp.txt (in that repository).

Vocabulary. Lengths are in decimeters. The model faces +z with y up. The camera
is at the origin and faces -z (OpenGL); points in its axes are
R p + t - (0, 0, 10), with R = Rz Ry Rx. Images have 224 pixels a side.
"""

import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.io

from gen3d.choices import UserError
from gen3d.models import deep3d
from gen3d.ops import cameras, raster

DISTANCE = 10.0  # of the camera from the origin of the model
FOCAL = 1015 / deep3d.SIDE  # in image heights
_NEAR, _FAR = 5.0, 15.0
# EG3D's world in the units of the model, its origin on the head's axes, and
# the sphere and focal length (in image heights) of its cameras.
_EG3D_SCALE, _EG3D_OFFSET = 0.27, (0.0, 0.006, 0.161)
_EG3D_RADIUS, _EG3D_FOCAL = 2.7, 2985.29 / 700
_READY = 'BFM_model_front.mat'
# Of the 68 landmarks, those of the eyes' corners, the nose and the mouth's
# corners: the eyes are the means of two.
_LANDMARKS = ((36, 39), (42, 45), (30, 30), (48, 48), (54, 54))


class FaceModel(NamedTuple):
  """Mean shape and bases; a pytree."""
  mean: Any        # [V, 3], centered
  identity: Any    # [80, V, 3]
  expression: Any  # [64, V, 3]
  faces: Any       # [F, 3] int
  landmarks: Any   # [68] int, vertices


class Face(NamedTuple):
  """What the reconstruction of N images is compared by."""
  depth: Any      # [N, S, S] along the viewing axis, 0 where there is no face
  landmarks: Any  # [N, 5, 2], see metrics/faces.py, in a crop of 224 pixels


def load(path: str | os.PathLike) -> FaceModel:
  """The face model of a folder, or of BFM_model_front.mat itself.

  Raises:
    UserError: a file is missing, cannot be read, or is not of this model.
  """
  path = pathlib.Path(path)
  ready = path / _READY if path.is_dir() else path
  if path.is_dir() and not ready.is_file():
    return _from_originals(path)
  content = _read_mat(ready, 'meanshape', 'idBase', 'exBase', 'tri',
                      'keypoints')
  return _model(ready, content['meanshape'], content['idBase'],
                content['exBase'], content)


def _from_originals(folder):
  """The model from the files that BFM_model_front.mat is made from."""
  basel_file = folder / '01_MorphableModel.mat'
  if not basel_file.is_file():
    raise UserError(
        f'{folder} has neither {_READY} nor {basel_file.name}; give the folder '
        'BFM of Deep3DFaceRecon_pytorch with the face model that you got from '
        'the University of Basel.')
  basel = _read_mat(basel_file, 'shapePC', 'shapeEV', 'shapeMU')
  info = _read_mat(folder / 'facemodel_info.mat', 'tri', 'keypoints')
  # Rows of the expressions' vertices, and of Basel's ones under these.
  front = _read_mat(folder / 'BFM_front_idx.mat', 'idx')['idx']
  trimmed = _read_mat(folder / 'BFM_exp_idx.mat', 'trimIndex')['trimIndex']
  front = front.astype(int).ravel() - 1
  rows = trimmed.astype(int).ravel()[front] - 1
  expressions = _read_expressions(folder)
  # From micrometers to decimeters, times the standard deviations.
  of_rows = lambda x, index: np.reshape(
      x / 1e5, (-1, 3, x.shape[1]))[index].reshape(-1, x.shape[1])
  return _model(
      basel_file, of_rows(basel['shapeMU'].reshape(-1, 1), rows),
      of_rows(basel['shapePC'] * basel['shapeEV'].ravel(), rows)[:, :80],
      of_rows(expressions, front)[:, :64], info)


def _read_expressions(folder):
  """Expressions [3 n, E] of Exp_Pca.bin, times their standard deviations."""
  path, deviations = folder / 'Exp_Pca.bin', folder / 'std_exp.txt'
  try:
    content = path.read_bytes()
    scale = np.loadtxt(deviations).ravel()
    count = int(np.frombuffer(content, '<i4', 1)[0])
    numbers = np.frombuffer(content, '<f4', offset=4)
    # The mean comes first; a model of faces without expression replaces it.
    bases = numbers.reshape(count + 1, -1)[1:]
    return bases.T * scale
  except (OSError, ValueError) as error:
    raise UserError(f'{path} or {deviations.name} cannot be read as the '
                    f'expressions of Guo et al. ({error}).') from error


def _read_mat(path: pathlib.Path, *names: str) -> dict[str, Any]:
  """The variables of a .mat file.

  Raises:
    UserError: the file is missing, cannot be read, or lacks one of `names`.
  """
  if not path.is_file():
    raise UserError(f'There is no file {path}; it is part of the face model of '
                    'Deep3DFaceRecon_pytorch.')
  try:
    content = scipy.io.loadmat(path, variable_names=names)
  except (ValueError, TypeError, LookupError, NotImplementedError, OSError,
          zlib.error, scipy.io.matlab.MatReadError) as error:
    raise UserError(f'{path} cannot be read as a .mat file ({error}); get it '
                    'again.') from error
  missing = [name for name in names if name not in content]
  if missing:
    raise UserError(f'{path} has no {missing[0]}; it is not of the face model '
                    'of Deep3DFaceRecon.')
  return content


def _model(path: pathlib.Path, mean: Any, identity: Any, expression: Any,
           info: Mapping[str, Any]) -> FaceModel:
  """The FaceModel of arrays with rows of x, y, z of each vertex; checked."""
  try:
    mean = np.asarray(mean, np.float32).reshape(-1, 3)
    basis = lambda x, width: np.asarray(x, np.float32).T.reshape(
        width, len(mean), 3)
    identity = basis(identity, deep3d.WIDTHS['identity'])
    expression = basis(expression, deep3d.WIDTHS['expression'])
    faces, landmarks = (np.asarray(info[name], np.int32) - 1
                        for name in ('tri', 'keypoints'))
    faces, landmarks = faces.reshape(-1, 3), landmarks.reshape(68)
    for index in (faces, landmarks):
      if index.min() < 0 or index.max() >= len(mean):
        raise ValueError('an index of a vertex is too large')
  except (ValueError, TypeError) as error:
    raise UserError(f'{path} is not of the face model of Deep3DFaceRecon '
                    f'({error}).') from error
  return FaceModel(
      mean - mean.mean(0), identity, expression, faces, landmarks)


def rotation(angles: jax.Array | np.ndarray) -> jax.Array:
  """R = Rz Ry Rx [..., 3, 3] of angles [..., 3] about x, y, z in radians."""
  (cx, cy, cz), (sx, sy, sz) = (
      jnp.moveaxis(f(jnp.asarray(angles)), -1, 0) for f in (jnp.cos, jnp.sin))
  rows = ((cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
          (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
          (-sy, cy * sx, cy * cx))
  return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def camera_to_world(angles: jax.Array | np.ndarray) -> jax.Array:
  """Rotations [..., 3, 3] of cameras (OpenGL) in the axes of the head."""
  return jnp.swapaxes(rotation(angles), -1, -2)


def camera_of(x: deep3d.Coefficients) -> cameras.Camera:
  """Cameras [N] of images of faces in EG3D's frame, as its labels have them.

  The camera's place relative to the head, in units of EG3D's world, whose
  origin is a little off the head's; then moved to the sphere of radius 2.7
  (2112.07945, supplement, and the code of its data set).

  Args:
    x: Coefficients of N faces, from the middle of the images (faces.CENTRAL).
  """
  rotations = camera_to_world(x.angles)
  from_head = jnp.einsum(
      'nij,nj->ni', rotations, jnp.array([0, 0, DISTANCE]) - x.translation,
      precision='highest')
  position = _EG3D_RADIUS * cameras.normalize(
      _EG3D_SCALE * from_head + jnp.array(_EG3D_OFFSET))
  c2w = jnp.concatenate([rotations, position[..., None]], axis=-1)
  last = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0]), (len(c2w), 1, 4))
  return cameras.Camera(
      jnp.concatenate([c2w, last], axis=1),
      cameras.pinhole(jnp.full(len(c2w), _EG3D_FOCAL)))


def vertices(model: FaceModel, x: deep3d.Coefficients) -> jax.Array:
  """Vertices [N, V, 3] in the axes of the camera."""
  combine = lambda weights, basis: jnp.einsum(
      'nk,kvc->nvc', weights, basis, precision='highest')
  shape = (model.mean + combine(x.identity, model.identity)
           + combine(x.expression, model.expression))
  turned = jnp.einsum('nij,nvj->nvi', rotation(x.angles), shape,
                      precision='highest')
  return turned + x.translation[:, None] - jnp.array([0, 0, DISTANCE])


def reconstruct(model: FaceModel, x: deep3d.Coefficients,
                size: int = deep3d.SIDE) -> Face:
  """Depth maps and landmarks of faces; to be compiled by the caller.

  Args:
    model: FaceModel.
    x: Coefficients of N faces.
    size: of the depth maps, pixels a side.
  """
  points = vertices(model, x)
  camera = cameras.Camera(jnp.eye(4), cameras.pinhole(FOCAL))
  clip = raster.to_clip(camera, points, _NEAR, _FAR)
  fragments = raster.rasterize(clip, model.faces, size)
  # Linear on the face: perspective-correct coordinates interpolate it.
  depth = raster.interpolate(-points[..., 2:], fragments, model.faces)[..., 0]
  landmarks, _ = cameras.project(
      jax.tree.map(lambda a: a[None], camera),
      jnp.take(points, jnp.asarray(model.landmarks), axis=1))
  five = jnp.stack([(landmarks[:, i] + landmarks[:, j]) / 2
                    for i, j in _LANDMARKS], axis=1)
  # Whole numbers at the centers of pixels.
  return Face(depth, five * deep3d.SIDE - 0.5)
