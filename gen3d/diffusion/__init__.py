"""Noise schedules, samplers and teachers: frozen text-to-image models."""
