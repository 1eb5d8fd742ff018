"""Preference optimisation of language models: two passes, no surprises."""

__version__ = "0.1.0"
