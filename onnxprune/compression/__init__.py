"""Models as small as they go: weights on coarse grids, one budget of bytes, and the entropy coder's file."""
