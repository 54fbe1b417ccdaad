"""Layers as regressions, fitted on samples."""
