"""Lossless changes of the order of channels."""
