"""The command line."""

from onnxprune.cli.main import main

__all__ = ["main"]
