"""Levers beside the widths: one file each, found by name, which turns a finished model into another.

A leaf has

- ``AIMS``: what it can make less, of ``latency``, ``bytes``, ``macs`` and ``memory``;
- ``SETTINGS``: names of what it can do, or ``LEAST``: its setting is the share that stays of the aim, and this the
  least of them that is worth a try;
- ``DEAR``, where it is so: it fits layers, so what doesn't is tried before;
- ``ENDS``, where it is so: nothing can be done to what it writes;
- ``apply(source, output, setting, samples)``: reads one file, writes another, and raises `OnnxPruneError` where it
  can't, with the reason.

Nothing of it is believed: each result is timed, weighed and judged like any other.
"""
