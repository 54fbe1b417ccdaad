"""Every form of samples through the whole journey, from the command line and from Python: the same model comes out."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import CalibrationError

COUNT = 40
X = np.random.default_rng(5).standard_normal((COUNT, 3, 6, 6)).astype(np.float32)
S = np.random.default_rng(6).uniform(0.5, 1.5, (COUNT, 4)).astype(np.float32)


def net(batch="N", kind=TensorProto.FLOAT):
    """Two convolutions, and a second input that scales the classes."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((12, 3, 3, 3)) / 3, "b1": rng.standard_normal(12) / 3,
               "w2": rng.standard_normal((4, 12, 3, 3)) / 9}  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Mul", ["e", "s"], ["y"]),
    ]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", kind, [batch, 3, 6, 6]),
            helper.make_tensor_value_info("s", kind, [batch, 4]),
        ],
        [helper.make_tensor_value_info("y", kind, [batch, 4])],
        [numpy_helper.from_array(a.astype(dtype), n) for n, a in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def npz(folder):
    np.savez(folder / "samples.npz", x=X, s=S)
    return "samples.npz"


def arrays(folder):
    (folder / "arrays").mkdir()
    np.save(folder / "arrays" / "x.npy", X)
    np.save(folder / "arrays" / "s.npy", S)
    return "arrays"


def data_sets(folder, size=10, names=True):
    for n in range(COUNT // size):
        one = folder / "sets" / f"test_data_set_{n}"
        one.mkdir(parents=True)
        for k, (name, array) in enumerate((("x", X), ("s", S))):
            tensor = numpy_helper.from_array(array[n * size : (n + 1) * size], name if names else "")
            (one / f"input_{k}.pb").write_bytes(tensor.SerializeToString())
        (one / "output_0.pb").write_bytes(numpy_helper.from_array(S[:1], "y").SerializeToString())
    return "sets"


def nameless_data_sets(folder):
    return data_sets(folder, names=False)


def script(folder):
    text = """
import numpy as np
def load_data():
    with np.load("samples.npz") as file:
        for n in range(0, 40, 8):
            yield {name: file[name][n : n + 8] for name in file.files}
"""
    npz(folder)
    (folder / "script.py").write_text(text)
    return "script.py:load_data"


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, size):
        self.parts = iter([{"x": X[n : n + size], "s": S[n : n + size]} for n in range(0, COUNT, size)])

    def get_next(self):
        return next(self.parts, None)


def script_beside_another(folder):
    """Its own module beside it, and a class whose module is looked up; the name is that of a data set."""
    npz(folder)
    (folder / "own").mkdir()
    (folder / "own" / "reading.py").write_text("import numpy as np\nfile = np.load('samples.npz')\n")
    text = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Part:
    first: int
    next: Part | None = None

class Data:
    def __len__(self): return 40
    def __getitem__(self, n):
        from reading import file  # only when it is asked for
        return {name: file[name][n : n + 1] for name in file.files}
data = Data()
"""
    (folder / "own" / "script.py").write_text(text)
    return "own/script.py:data"


def other_byte_order(folder):
    np.savez(folder / "samples.npz", x=X.astype(">f4"), s=S)
    return "samples.npz"


FILES = (npz, arrays, data_sets, nameless_data_sets, script, script_beside_another, other_byte_order)
OBJECTS = {
    "dict": lambda size: {"x": X, "s": S},
    "list": lambda size: [{"x": X[n : n + size], "s": S[n : n + size]} for n in range(0, COUNT, size)],
    "generator": lambda size: ({"s": S[n : n + size], "x": X[n : n + size]} for n in range(0, COUNT, size)),
    "reader": Reader,
}


def weights(model):
    model = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def same(one, two):
    one, two = weights(one), weights(two)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_allclose(array, two[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def expected():
    found = onnxprune.prune(net(), ratio=0.5, align=None, calib={"x": X, "s": S})
    assert found.report.calibration["layers"][-1]["variant"].startswith(("lstsq", "local"))
    assert weights(found.model)["w1"].shape[0] == 6
    plain = onnxprune.prune(net(), ratio=0.5, align=None)
    assert np.abs(weights(plain.model)["w2"] - weights(found.model)["w2"]).max() > 1e-3
    return found.model


@pytest.mark.parametrize("form", FILES, ids=lambda f: f.__name__)
def test_forms_on_disk_from_the_command_line(form, tmp_path, expected):
    given = form(tmp_path)
    onnx.save(net(), tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-m", "onnxprune", "prune", "model.onnx", "small.onnx", "--ratio", "0.5", "--align", "none",
         "--calib", given, "-q"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(onnxprune.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same(tmp_path / "small.onnx", expected)


@pytest.mark.parametrize("form", OBJECTS)
@pytest.mark.parametrize("size", [8, 1])
def test_forms_in_memory(form, size, expected):
    same(onnxprune.prune(net(), ratio=0.5, align=None, calib=OBJECTS[form](size)).model, expected)


@pytest.mark.parametrize("form", OBJECTS)
def test_models_with_a_fixed_batch(form):
    found = onnxprune.prune(net(batch=1), ratio=0.5, align=None, calib=OBJECTS[form](1))
    assert found.report.calibration["samples"] == 36
    assert found.report.calibration["original"]["samples"] == 4
    assert found.report.calibration["layers"][-1]["variant"].startswith(("lstsq", "local"))


def test_half_floats():
    given = {"x": X.astype(np.float16), "s": S.astype(np.float16)}
    found = onnxprune.prune(net(kind=TensorProto.FLOAT16), ratio=0.5, align=None, calib=given)
    assert found.report.calibration["layers"][-1]["after"] < found.report.calibration["layers"][-1]["before"]


@pytest.mark.parametrize(
    ("given", "batch", "text"),
    [
        ({"x": X, "s": S[:7]}, "N", "40 samples of 'x', but 7 of 's'"),
        ({"x": X[:3], "s": S[:3]}, 8, "3 samples, but the model takes 8 at a time"),
        ({"x": X[:, :2], "s": S}, "N", r"'x' have the shape \(40, 2, 6, 6\)"),
        (
            {"x": np.tile(X, (3, 1, 1, 2)), "s": np.tile(S, (3, 1))},
            "N",
            r"the shape \(120, 3, 6, 12\), but the model's input has \(N,3,6,6\)\.",
        ),
        ({"x": X, "s": S[:, 0]}, "N", "'s' have 1 axes"),
        ({"x": X, "s": S.astype(int)}, "N", "'s' are int64, but the model's input is float32"),
        ({"x": X, "scale": S}, "N", "have 'scale', which is no input of the model, and lack 's'"),
        ({"x": X}, "N", "samples lack 's'"),
        ({"x": X[:4], "s": S[:4]}, "N", "4 samples only"),
        ({"x": X * np.nan, "s": S}, "N", "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_said(given, batch, text):
    with pytest.raises(CalibrationError, match=text):
        onnxprune.prune(net(batch), ratio=0.5, align=None, calib=given)


def test_a_folder_without_samples_is_said(tmp_path):
    with pytest.raises(CalibrationError, match=r"holds no \.npy files and no test_data_set_0"):
        onnxprune.prune(net(), ratio=0.5, calib=tmp_path)
    (tmp_path / "test_data_set_0").mkdir()
    (tmp_path / "test_data_set_0" / "input_0.pb").write_bytes(b"\xff\xff")
    with pytest.raises(CalibrationError, match=r"input_0\.pb' can't be read"):
        onnxprune.prune(net(), ratio=0.5, calib=tmp_path)
    (tmp_path / "script.py").write_text("def load_data():\n    return undefined\n")
    with pytest.raises(
        CalibrationError, match=r"name the function that gives samples, as in .*script\.py:load_data"
    ):
        onnxprune.prune(net(), ratio=0.5, calib=tmp_path / "script.py")
    with pytest.raises(CalibrationError, match=r"load_data\(\) fails with NameError"):
        onnxprune.prune(net(), ratio=0.5, calib=f"{tmp_path / 'script.py'}:load_data")
    with pytest.raises(CalibrationError, match=r"has no function other\(\)"):
        onnxprune.prune(net(), ratio=0.5, calib=f"{tmp_path / 'script.py'}:other")
