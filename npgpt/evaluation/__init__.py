"""Measuring what a model has learned: how well it foretells a text, and which ending it holds likelier."""
