"""Evaluations: one module per table of configs/README.md."""
