"""The light models of the onnx package with weights: `python benchmarks/zoo/light.py FOLDER` (needs onnx and
numpy).

They are real architectures (AlexNet, DenseNet, Inception, ResNet, ShuffleNet, SqueezeNet, VGG, ZFNet at
opset 9) whose weights the package replaced by ConstantOfShape nodes to save space. Here each such node
becomes an initializer with distinct random values; as these are files of the time when every initializer
had to be an input, it is declared as an input too where the file did so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def fill(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Replace ConstantOfShape nodes on constant shapes by random initializers."""
    rng = np.random.default_rng(0)
    graph = proto.graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    uses = {name: (node.op_type, slot) for node in graph.node for slot, name in enumerate(node.input)}
    inputs = {value.name for value in graph.input}
    for node in [n for n in graph.node if n.op_type == "ConstantOfShape" and n.input[0] in constants]:
        shape, name = [int(d) for d in constants[node.input[0]]], node.output[0]
        graph.initializer.append(numpy_helper.from_array(_values(rng, shape, *uses.get(name, ("", 0))), name))
        if node.input[0] in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for values in (graph.initializer, graph.input):
        for value in [v for v in values if v.name not in used]:
            values.remove(value)
    return proto


def _values(rng: np.random.Generator, shape: list[int], op: str, slot: int) -> np.ndarray:
    if len(shape) >= 2:
        fan_in = max(1, int(np.prod(shape[1:])))
        array = rng.normal(0, (2 / fan_in) ** 0.5, shape)
    elif op == "BatchNormalization" and slot in (1, 4):
        array = rng.uniform(0.5, 1.5, shape)
    else:
        array = rng.normal(0, 0.3, shape)
    return array.astype(np.float32)


if __name__ == "__main__":
    target = Path(sys.argv[1]) / "light"
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(LIGHT.glob("*.onnx")):
        onnx.save(fill(onnx.load(file)), target / file.name)
        print(target / file.name)
