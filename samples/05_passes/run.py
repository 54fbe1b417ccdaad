"""Passes: whole transformations, chained by name, and one of your own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CNN, accuracy, folder, onnxprune
from rename_producer import run as rename_producer

from onnxprune import Model


def main() -> None:
    with folder() as out:
        small, mine = out / "small.onnx", out / "mine.onnx"
        passes = "resolve_shapes,prune{ratio=0.5 align=8},drop_dead,shrink"
        onnxprune("run", CNN, small, "--passes", passes)
        print(f"accuracy {accuracy(CNN):.2%} -> {accuracy(small):.2%}   (450 held-out digits)")

        # A pass is a function Model -> Model. As a file in passes/ it has a name for --passes; from your own
        # program you call it.
        rename_producer(Model.load(small), producer="my company").save(mine)
        print(f"written by {Model.load(mine).proto.producer_name!r}, accuracy {accuracy(mine):.2%}")


if __name__ == "__main__":
    main()
