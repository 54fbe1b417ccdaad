"""The main job: prune a trained net with one command, and see what it costs in true accuracy."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CNN, folder, onnxprune, table


def main() -> None:
    with folder() as out:
        small, report = out / "small.onnx", out / "report.json"
        onnxprune("prune", CNN, small, "--ratio", "0.5", "--align", "8", "--report", report)
        table(json.loads(report.read_text(encoding="utf-8")), CNN, small)


if __name__ == "__main__":
    main()
