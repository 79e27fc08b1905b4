"""Twins in NumPy: each is its formula, a block at a time and in place, so that temporaries stay in cache."""
