"""Inspection: looking into ops, layers and models, first of all whether their gradients are right."""

from npgpt.inspection.gradient_check import GradientError, check_gradients

__all__ = ["GradientError", "check_gradients"]
