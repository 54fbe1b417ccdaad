"""Zeros in the weights: patterns, where they may go, methods that choose them, and what they buy."""
