"""Checkpoints of other projects: read into (a configuration, named arrays) and written from them."""
