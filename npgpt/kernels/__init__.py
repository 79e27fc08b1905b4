"""Twins of the ops: `cpu` in NumPy, `cuda` in CUDA. Found by name (npgpt/tensor/twins.py), not imported."""
