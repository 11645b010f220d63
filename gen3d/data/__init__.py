"""Data sets: captures, images with cameras, the shapes world."""
