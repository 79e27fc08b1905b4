"""Twins in CUDA: <op>.py covers what it can of a call, and launches what stands in <op>.cu through CuPy."""
