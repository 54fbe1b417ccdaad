"""Bytes on disk: parsing without the weights, checks, safe external data, atomic output."""
