"""xatlas in a process of its own.

xatlas holds Python's interpreter while it works, which takes minutes for a
large mesh: nothing else of the process would run, neither the notice of how
long it takes nor the end by Ctrl-C. For the surface of a noisy density it takes
far longer, so its time is limited.
"""

import io
import subprocess
import sys

import numpy as np
import xatlas

try:
  import resource
except ImportError:  # Windows
  resource = None

# Seconds of the processor, and for each face: several times what the meshes of
# trained objects need.
_SECONDS, _SECONDS_PER_FACE = 60, 5e-4
_SIGNAL = 24  # SIGXCPU, which only Unix has


class TooSlow(ValueError):
  """A mesh is too irregular for an atlas."""


def generate(
    vertices: np.ndarray, faces: np.ndarray, *, max_cost: float,
    max_chart_area: float, resolution: int, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts a mesh into charts and packs them.

  Args:
    vertices: float32 [V, 3].
    faces: uint32 [F, 3].
    max_cost, max_chart_area: xatlas's options of charts.
    resolution, padding: xatlas's options of packing, in texels.

  Returns:
    (index [W] of the vertex that each new vertex is a copy of, faces [F, 3]
    of the new vertices, uv [W, 2] in texels).

  Raises:
    TooSlow: xatlas has not come to an end in time; names the number of faces.
    RuntimeError: xatlas has failed.
  """
  given = io.BytesIO()
  seconds = int(_SECONDS + _SECONDS_PER_FACE * len(faces))
  np.savez(given, vertices=vertices, faces=faces, charts=np.array(
      [max_cost, max_chart_area]), packing=np.array([resolution, padding]),
           seconds=seconds)
  # -P: the modules beside this file are not those of the same name.
  done = subprocess.run([sys.executable, '-P', __file__], capture_output=True,
                        input=given.getvalue(), check=False)
  if done.returncode == -_SIGNAL:
    raise TooSlow(f'no texture atlas of its {len(faces):,} triangles was found '
                  f'in {seconds} seconds')
  if done.returncode:
    raise RuntimeError(f'xatlas has failed (exit status {done.returncode}): '
                       f'{done.stderr.decode(errors="replace")}')
  with np.load(io.BytesIO(done.stdout)) as found:
    return found['origin'], found['faces'], found['uv']


def _answer() -> None:
  """From the arrays on stdin to those on stdout."""
  with np.load(io.BytesIO(sys.stdin.buffer.read())) as given:
    atlas, charts, packing = (
        xatlas.Atlas(), xatlas.ChartOptions(), xatlas.PackOptions())
    charts.max_cost, charts.max_chart_area = given['charts'].tolist()
    packing.resolution, packing.padding = given['packing'].tolist()
    packing.bilinear = True
    limit = given['seconds'].item()
    if resource:
      resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    atlas.add_mesh(given['vertices'], given['faces'])
  atlas.generate(charts, packing)
  origin, faces, uv = atlas[0]
  found = io.BytesIO()
  np.savez(found, origin=origin, faces=faces,
           uv=uv * [atlas.width, atlas.height])
  sys.stdout.buffer.write(found.getvalue())


if __name__ == '__main__':
  _answer()
