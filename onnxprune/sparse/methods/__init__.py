"""Ways to choose which weights become zero: one file each, found by name.

A leaf says with ``DATA`` whether it needs samples. Without, ``score(magnitude)`` ranks weights; with, ``solve(task)``
returns an `onnxprune.sparse.task.Solver`.
"""
