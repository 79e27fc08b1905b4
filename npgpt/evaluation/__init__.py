"""Measuring what a model has learned: how well it foretells a text, which ending it holds likelier, how near
it comes to what others wrote, and to which class it says a text belongs."""
