"""Zeros in weights: patterns, methods, and what they buy."""
