"""Training: the loop, its step, the optimiser, checkpoints, and several processes."""
