"""The main job on a transformer: prune it on samples of its input, and see what that costs in true accuracy."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import HERE, TRANSFORMER, folder, onnxprune, table


def main() -> None:
    with folder() as out:
        small, report, calib = out / "small.onnx", out / "report.json", out / "calib.npz"
        with np.load(HERE / "data" / "digits.npz") as data:
            np.savez(calib, image=data["train_x"][:500].astype(np.float32)[:, None] / 16)
        options = ["--ratio", "0.5", "--align", "none", "--calib", calib, "--report", report]
        onnxprune("prune", TRANSFORMER, small, *options)
        table(json.loads(report.read_text(encoding="utf-8")), TRANSFORMER, small)


if __name__ == "__main__":
    main()
