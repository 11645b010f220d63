"""Training of any task: devices, state, checkpoints, reports and the loop."""
