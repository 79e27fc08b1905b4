"""Training: the loop, the optimiser, and what keeps a run safe on disk."""
