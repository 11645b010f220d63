"""PostScript images, and a stand-in for Ghostscript that leaves a trace."""

from PIL import EpsImagePlugin

POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
0 0 8 8 rectfill
showpage
%%EOF
"""
# The same in a file with the binary header that DOS programs write.
DOS = b'\xc5\xd0\xd3\xc6' + (32).to_bytes(4, 'little') + len(
    POSTSCRIPT).to_bytes(4, 'little') + bytes(20) + POSTSCRIPT


def plant(folder, monkeypatch):
  """Puts a stand-in on the PATH; returns the file that it makes if started."""
  marker = folder / 'started'
  program = folder / 'bin' / 'gs'
  program.parent.mkdir()
  program.write_text(f'#!/bin/sh\necho "$@" >> "{marker}"\n')
  program.chmod(0o755)
  monkeypatch.setenv('PATH', str(program.parent), prepend=':')
  # Pillow searches for the program once.
  monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
  return marker
