"""The Python API, all in memory: ModelProto in, ModelProto out."""

import sys
from pathlib import Path

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CNN, accuracy

import onnxprune


def main() -> None:
    model = onnx.load(CNN)
    before = model.SerializeToString()

    for ratio in (0.25, 0.5, 0.75):
        result = onnxprune.prune(model, ratio=ratio, criterion="l2", align=8)
        report = result.report
        left = report.after.parameters / report.before.parameters
        error = report.law1["max_relative_error"]
        print(
            f"ratio {ratio}: {left:.1%} of the parameters, accuracy {accuracy(result.model):.2%}, "
            f"{len(report.cuts)} slices, law 1 within {error:.1e}"
        )
    assert model.SerializeToString() == before  # the input is never changed

    # A decision is a value: make it once, look at it, carry it out, prove it again whenever you like.
    plan = onnxprune.plan(model, ratio=0.5, align=8)
    small = onnxprune.apply(model, plan).model
    print("verified again:", f"{onnxprune.verify(model, small, plan)['max_relative_error']:.1e}")

    try:
        onnxprune.prune(model, ratio=1.5)
    except onnxprune.OnnxPruneError as error:
        print(f"{type(error).__name__} (exit code {error.exit_code}): {error}")


if __name__ == "__main__":
    main()
