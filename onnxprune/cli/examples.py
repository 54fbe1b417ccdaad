"""What the help of each command shows below its options."""

from __future__ import annotations

__all__ = [
    "CALIBRATE",
    "CODES",
    "COMPRESS",
    "DECOMPRESS",
    "EXPLAIN",
    "FLEET",
    "INSPECT",
    "PLAN",
    "PROFILE",
    "PRUNE",
    "RUN",
    "SENSITIVITY",
    "SPARSIFY",
    "TUNE",
]

CODES = """\
exit codes:
  0  done                              5  the result failed verification
  1  another error, or a bug           6  the plan is malformed or of another
  2  an option or argument is wrong       model
  3  the input is no sound ONNX model  7  the output can't be written
  4  nothing in the model can be cut   8  the given inputs don't fit the model
130  interrupted                       9  sound, but no faster than the input
129, 143  ended by SIGHUP, SIGTERM
"""

PRUNE = """\
examples:
  onnxprune prune model.onnx small.onnx --ratio 0.5
      remove half of the channels of every group; prove that nothing else changed
  onnxprune prune model.onnx small.onnx --ratio 0.3 --ignore '^head' --report report.json
      leave the layers alone whose name starts with 'head', and write down what was done
  onnxprune prune bert.onnx small.onnx --ratio 0.5 --input-shape input_ids:1,128 --criterion l1
      sizes for the dynamic axes of an input, where no guess fits
  onnxprune prune model.onnx small.onnx --target macs=0.5 --calib samples.npz
      half of the MACs, cut where it costs least and refitted on unlabelled samples; no training
  onnxprune prune model.onnx small.onnx --target bytes=20MB+memory=0.7
      files of 20 MB at most, and 70 % of the peak memory of a run
  onnxprune prune model.onnx small.onnx --target macs=0.7,0.5,0.3 --calib samples.npz
      three models, small-macs0.7.onnx and so on, from one calibration

The input is never changed. OUT appears complete or not at all.
"""

INSPECT = """\
examples:
  onnxprune inspect model.onnx
      how much could go, and by which command; groups, and what is frozen and why
  onnxprune inspect model.onnx --json
      the same for programs
  onnxprune inspect model.onnx --sparsity
      zeros of each weight, patterns by axis, what runtimes make of them
  onnxprune inspect --ops
      the op table
"""

EXPLAIN = """\
examples:
  onnxprune explain model.onnx conv1.weight 0
      the axes that go with it, through which nodes
  onnxprune explain model.onnx conv1.weight:0 --json
"""

SENSITIVITY = """\
examples:
  onnxprune sensitivity model.onnx --calib samples.npz
      the error when a quarter, a half, three quarters of each group are gone; kept on disk for later runs
"""

CALIBRATE = """\
examples:
  onnxprune calibrate model.onnx --calib samples.npz --shard 1/2 -o part1.npz
  onnxprune calibrate model.onnx --calib samples.npz --shard 2/2 -o part2.npz
      on two machines, or one after the other
  onnxprune merge part1.npz part2.npz -o all.npz
      has the bytes of one run without --shard
  onnxprune prune model.onnx small.onnx --target macs=0.5 --moments all.npz
"""

FLEET = """\
examples:
  onnxprune fleet models small --target macs=0.7,0.5 --calib synthetic --jobs 2
      two of each model in the folder; stopped or killed, the same command goes on
  onnxprune fleet fleet.toml small
      [options], and a [[model]] each with its path and options of its own; small/fleet.csv is the table
  onnxprune fleet fleet.toml small --retry
      tries again what failed
"""

PROFILE = """\
examples:
  onnxprune profile model.onnx --threads 1
      the time of each layer inside the model, the groups whose cuts reach it, and what no cut reaches
"""

PLAN = """\
examples:
  onnxprune plan model.onnx -o plan.json --ratio 0.5
  (edit "removed_units" in plan.json, and delete "cuts", which follows from it)
  onnxprune apply model.onnx plan.json small.onnx
"""

RUN = """\
examples:
  onnxprune run model.onnx small.onnx --passes "resolve_shapes,prune{ratio=0.5},shrink"
  onnxprune run model.onnx small.onnx --recipe recipes/edge-cnn.toml --calib samples.npz

Each pass is one file in onnxprune/passes; an option's value is written name=value, several are separated by a
space or a comma. Known passes: PASSES.
"""

SPARSIFY = """\
examples:
  onnxprune sparsify model.onnx sparse.onnx --pattern 2:4
      two zeros of every four inputs, where sparse tensor cores want them
  onnxprune sparsify model.onnx sparse.onnx --pattern unstructured --sparsity 0.7 --scope global
      the smallest 70 % of all weights become zero

Zeros make no model faster by themselves: the report says which runtime gains what.
"""

COMPRESS = """\
examples:
  onnxprune compress model.onnx small.onnx.zst
      packed as it is: no weight changes; 'zstd -d' unpacks it, too
  onnxprune compress model.onnx small.onnx.zst --target bytes=0.0625 --calib samples.npz
      16 times smaller in transfer: coarse steps for weights that bear them, refitted on unlabelled samples, then packed
  onnxprune compress model.onnx small.onnx --target bytes=0.25 --calib samples.npz
      a model on disk of a quarter of the bytes, which stock onnxruntime loads and runs as fast as the input
  onnxprune decompress small.onnx.zst model.onnx
      unpacked, and checked to be what was packed

Sizes on disk, in transfer and in memory are three things: in memory onnxruntime holds all floats again. For a model
that runs faster prune it first ('onnxprune prune'), and compress what that gives.
"""

DECOMPRESS = """\
examples:
  onnxprune decompress small.onnx.zst model.onnx

A file that is damaged, cut off or not what its record says is refused (exit code 3), and nothing is written. Models of
more than 2 GB are packed as a tar of the model and its data file, which goes beside OUT.
"""

TUNE = """\
examples:
  onnxprune tune model.onnx fast.onnx --max-drop 1 --calib samples.npz --labels y
      the fastest model that loses at most one point of accuracy; samples.npz holds inputs and labels y, a tenth of
      which no fit sees
  onnxprune tune model.onnx fast.onnx --max-drop 1 --calib samples.npz --labels y --eval test.npz
      the same, judged on other data
  onnxprune tune model.onnx fast.onnx --max-drop 1 --calib samples.npz --metric eval.py:evaluate --minutes 30
      judged by evaluate(path) of eval.py, which returns a number
  onnxprune tune model.onnx small.onnx --max-drop 1 --calib samples.npz --labels y --minimize bytes
      the smallest file
  onnxprune tune model.onnx fast.onnx --max-drop 1 --calib samples.npz --labels y --target latency=0.5
      the first that loses at most one point and is twice as fast; where none is, it says which comes nearest

OUT is the best so far at any moment; with --target it is written when a model meets that, and not before. Finished
members lie in OUT's folder of state; the same command goes on from them.
"""
