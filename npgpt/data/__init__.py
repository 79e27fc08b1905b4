"""Data: texts, the part of them held back, token files, and batches. Knows no tensors."""
