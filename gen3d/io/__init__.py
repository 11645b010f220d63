"""Image, mesh and video files."""
