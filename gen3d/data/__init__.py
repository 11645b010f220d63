"""Data sets: images, captions and cameras."""
