"""Decide, read the decision, change it by hand, carry it out, prove it."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CNN, accuracy, folder, onnxprune


def edit(path: Path) -> str:
    """Do what one would do in an editor: spare the group with the fewest units, and say which it was.

    The list "cuts" follows from the groups; it is deleted here, and worked out again.
    """
    plan = json.loads(path.read_text(encoding="utf-8"))
    spared = min((g for g in plan["groups"] if g["removed_units"]), key=lambda g: g["units"])
    spared["removed_units"] = []
    del plan["cuts"]
    path.write_text(json.dumps(plan, indent=1), encoding="utf-8")
    return str(spared["name"])


def main() -> None:
    with folder() as out:
        plan, small = out / "plan.json", out / "small.onnx"
        onnxprune("plan", CNN, "-o", plan, "--ratio", "0.6", "--align", "8")
        print(f"edited by hand: the group {edit(plan)} stays whole\n")
        onnxprune("apply", CNN, plan, small)
        onnxprune("verify", CNN, small, "--plan", plan)
        print(f"accuracy {accuracy(CNN):.2%} -> {accuracy(small):.2%}   (450 held-out digits)")


if __name__ == "__main__":
    main()
