"""Passes: one file each, each one transformation of a model.

These files are installed as ``onnxprune.passes``. In a checkout they lie at the top, where anyone who
wants to write one finds them.
"""

if __name__ != "onnxprune.passes":
    raise ImportError(f"These are the passes of onnxprune: import onnxprune.passes, not {__name__!r}.")
