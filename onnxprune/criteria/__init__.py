"""Criteria that rank the units of a group: one file each, found by name.

``READS`` says what a criterion looks at, and with it which function it has:

``"weights"``: ``score(group, weight, rng)``
    Returns one number per unit, float64[units]; units with higher numbers are kept, and a unit with infinity always
    is. ``weight`` gives the values of a weight by name, ``rng`` is seeded anew for every group. What it couldn't judge
    as asked it tells through `warnings`.
``"moments"``: ``curve(consumers, least)``
    Returns the loss curve of one group (`onnxprune.reconstruction.least_squares.Curve`), from the moments of the
    layers that read it; ``least`` units stay. With ``SWAPS = True`` units are exchanged while that lowers the error of
    a refit, where one layer alone reads the group.
``"model"``: ``measure(probe)``
    Returns the scores of all groups, from runs of the whole model (`onnxprune.reconstruction.probe.Probe`).

A criterion knows members, channels and units, not ops: which op a weight belongs to doesn't matter.
"""
