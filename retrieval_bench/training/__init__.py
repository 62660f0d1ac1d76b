"""Training: the loop, the optimiser and its schedule, the loss as a module."""
