"""Photographs with known cameras: layouts, lenses, poses."""
