"""Bases in which few units hold most: lossless changes of the weights around a group with nothing but sums inside."""
