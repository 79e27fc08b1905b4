"""Twins in NumPy: each is its formula, one block of rows at a time, in place, so that the temporaries stay in cache."""
