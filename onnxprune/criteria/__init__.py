"""Criteria that rank the units of a group: one file each, found by name.

A criterion is a function ``score(group, weight, rng)`` that returns one number per unit, float64[units]; units with
higher numbers are kept, and a unit with infinity always is. ``weight`` gives the values of a weight by name, ``rng`` is
seeded anew for every group. It knows members, not ops: which op a weight belongs to doesn't matter. What it couldn't
judge as asked it tells through `warnings`.
"""
