"""Programs that print the figures; the text at the head of each says how to run it.

- ``zoo/``: exactness on many architectures: ``export.py`` makes the files, ``check.py`` prunes and checks them,
  ``lengths.py`` does so at other lengths and batches, ``light.py`` fills the light models of the onnx package.
- ``accuracy/``: what is left of real models: ``pruning.py`` and ``sparsity.py`` beside rivals, ``quantised.py`` of int8
  and int4, ``calibration.py`` what samples cost, ``permutation.py`` the search for an order, ``sparsity_check.py``
  NVIDIA's checker.
- ``speed/``: ``pruning.py`` and ``sparsity.py`` of the tool, ``memory.py`` its memory, ``latency.py`` of the results,
  ``landing.py`` where latency targets land, ``shards.py`` a calibration on many machines.
- ``frontier.py``: how fast for one point, beside int8 alone and a rival.
- here: ``op_law.py`` (each op's row), ``mutants.py`` (the tests), ``fuzz.py`` and ``attempt.py`` (hostile files),
  ``replay.py`` (the same bytes as before).
"""
