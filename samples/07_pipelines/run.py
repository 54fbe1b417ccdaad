"""One step of other tools' pipelines: onnx-ir, onnxruntime's quantiser, and Olive where it is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CNN, accuracy, folder, onnxprune
from common import HERE as SAMPLES

import onnxprune as tool

HERE = Path(__file__).resolve().parent


def images() -> dict[str, np.ndarray]:
    """Return unlabelled digits for the input of the net."""
    with np.load(SAMPLES / "data" / "digits.npz") as data:
        return {"image": data["train_x"].astype(np.float32)[:, None] / 16}


def quantised(out: Path) -> None:
    """Prune, then let onnxruntime's own quantiser calibrate on the same samples."""
    from onnxruntime.quantization import quantize_static

    small, int8 = out / "small.onnx", out / "int8.onnx"
    onnxprune("prune", CNN, small, "--ratio", "0.5")
    quantize_static(small, int8, tool.reader(small, images(), samples=64))
    print(f"pruned and int8: accuracy {accuracy(int8):.2%}, {int8.stat().st_size:,} bytes")


def with_onnx_ir(out: Path) -> None:
    """The same cut as a pass of onnx-ir."""
    import onnx_ir
    from onnx_ir.passes import Sequential

    from onnxprune.integrations.ir import PrunePass

    step = PrunePass(ratio=0.5)
    result = Sequential(step)(onnx_ir.load(CNN))
    onnx_ir.save(result.model, out / "ir.onnx")
    print(f"onnx-ir: {step.report.after.parameters:,} parameters, accuracy {accuracy(out / 'ir.onnx'):.2%}")


def with_olive(out: Path) -> None:
    """A workflow of Olive: prune, then its dynamic quantisation."""
    package, workflow = out / "package.json", out / "workflow.json"
    subprocess.run([sys.executable, "-m", "onnxprune.integrations.olive", package], check=True)
    steps = json.loads((HERE / "workflow.json").read_text())
    steps["input_model"]["model_path"] = str(CNN)
    workflow.write_text(json.dumps(steps))
    command = ["olive", "run", "--config", workflow.name, "--package-config", package.name]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, cwd=out, check=True, capture_output=True, env={**os.environ, "PATH": path})
    print(f"Olive: accuracy {accuracy(out / 'out' / 'model.onnx'):.2%}")


def main() -> None:
    with folder() as out:
        quantised(out)
        for package, step in (("onnx_ir", with_onnx_ir), ("olive", with_olive)):
            if importlib.util.find_spec(package):
                step(out)
            else:
                print(f"{package} isn't installed: left out")


if __name__ == "__main__":
    main()
