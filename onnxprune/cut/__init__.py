"""Carry a decided cut into a model."""
