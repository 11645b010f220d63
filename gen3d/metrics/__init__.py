"""Metrics of images, of images against texts, of distributions and shapes."""
