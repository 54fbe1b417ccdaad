"""Ways to choose which weights become zero: one file each, found by name.

A leaf says with ``READS`` whether it looks at ``"weights"`` alone or at ``"moments"`` of samples, and has
``solve(task)``, which gives an `onnxprune.sparsity.task.Solver`. One that reads weights also has ``score(magnitude)``,
which ranks them.
"""
