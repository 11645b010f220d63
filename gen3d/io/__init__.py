"""Mesh and video files."""
