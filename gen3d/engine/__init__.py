"""State, chips, checkpoints, reports and the loop. Knows nothing of 3-D."""
