"""Why is this not smaller? Ask what is frozen, and why."""

import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import TRANSFORMER, onnxprune


def main() -> None:
    onnxprune("inspect", TRANSFORMER)
    strict = json.loads(onnxprune("inspect", TRANSFORMER, "--no-center-norms", "--json", show=False))
    loose = json.loads(onnxprune("inspect", TRANSFORMER, "--json", show=False))
    for name, found in (("LayerNorm as it is", strict), ("as an RMS norm", loose)):
        left = found["left"]["half"]["parameters"]
        print(f"{name}: {len(found['groups'])} groups, {left:.1%} of the parameters left at ratio 0.5")
    before, after = (Counter(line["reason"] for line in found["frozen"]) for found in (strict, loose))
    for reason, count in (before - after).most_common(3):
        print(f"  no longer frozen: {count} axes: {reason}")


if __name__ == "__main__":
    main()
