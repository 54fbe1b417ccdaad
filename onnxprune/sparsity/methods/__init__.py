"""Ways to choose which weights become zero: one file each, found by name.

A leaf says with ``DATA`` whether it needs samples, and has ``solve(task)``, which gives an
`onnxprune.sparsity.task.Solver`. One that doesn't need them also has ``score(magnitude)``, which ranks weights.
"""
