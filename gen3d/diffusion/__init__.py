"""Noise schedules, samplers and frozen teachers."""
