"""Functional models, taken apart and made anew with other layers."""
