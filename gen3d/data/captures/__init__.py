"""Photographs with known cameras: layouts, camera models, poses."""
