"""Plugins for other tools: each a file that imports its tool when it is itself imported, and not before."""
