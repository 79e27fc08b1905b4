"""Data: texts, preparing them, the part held back, token files, and batches. Knows no tensors."""
