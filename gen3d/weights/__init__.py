"""Readers of published weights: files, names and layouts, NumPy only."""
