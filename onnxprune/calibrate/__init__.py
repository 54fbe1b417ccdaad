"""What calibration samples say: readers, streamed moments, layers as regressions, runs of a part of a model."""
