"""Twins in CUDA, launched through CuPy. None yet: on a GPU the formulas run."""
