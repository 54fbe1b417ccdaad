"""Weights that a graph computes from other weights: folded where that helps, put back where nothing was cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune import api
from onnxprune.errors import NothingToPrune, UsageError, VerificationError
from onnxprune.graph import folding
from onnxprune.graph.analysis import analyse
from onnxprune.graph.computed import Finder
from onnxprune.model import Model
from onnxprune.sparsity.inspection import inspect_sparsity

from outside import exact, feeds_of, half, run  # isort: skip
from small_models import Builder  # isort: skip


class Nets(Builder):
    """Builds layers whose weights are computed."""

    def axes(self, name: str, *axes: int) -> str:
        return self.constant(name, np.array(axes))

    def standardised(self, w: str, name: str) -> str:
        mean = self.op("ReduceMean", [w], f"{name}.mean", axes=[1, 2, 3])
        centred = self.op("Sub", [w, mean], f"{name}.centred")
        square = self.op("Mul", [centred, centred], f"{name}.square")
        spread = self.op("ReduceMean", [square], f"{name}.var", axes=[1, 2, 3])
        root = self.op(
            "Sqrt",
            [self.op("Add", [spread, self.constant(f"{name}.eps", np.float32(1e-5))], f"{name}.add")],
            f"{name}.root",
        )
        return self.op("Div", [centred, root], f"{name}.weight")

    def by_norm(self, w: str, name: str) -> str:
        """Weight normalisation: g w / |w|."""
        length = self.op("ReduceL2", [w], f"{name}.length", axes=[1, 2, 3])
        return self.op(
            "Mul",
            [self.op("Div", [w, length], f"{name}.unit"), self.weight(f"{name}.g", 16, 1, 1, 1)],
            f"{name}.weight",
        )

    def by_batch(self, w: str, name: str) -> str:
        """Weight standardisation as a BatchNormalization of the weight as one image."""
        flat = self.op("Reshape", [w, self.axes(f"{name}.flat", 1, 16, -1)], f"{name}.in")
        parts = [
            self.constant(f"{name}.{n}", np.full(16, v, np.float32))
            for n, v in (("s", 2), ("b", 0), ("m", 0), ("v", 1))
        ]
        y = self.op("BatchNormalization", [flat, *parts], f"{name}.bn", outputs=3, training_mode=1)
        return self.op("Reshape", [y, self.axes(f"{name}.kernel", 16, -1, 3, 3)], f"{name}.weight")

    def spectral(self, w: str, name: str) -> str:
        flat = self.op("Reshape", [w, self.axes(f"{name}.flat", 16, -1)], f"{name}.in")
        norm = self.op("ReduceMax", [self.op("Abs", [flat], f"{name}.abs")], f"{name}.max", keepdims=0)
        return self.op("Div", [w, norm], f"{name}.weight")

    def softmaxed(self, w: str, name: str) -> str:
        return self.op("Softmax", [w], f"{name}.weight", axis=1)

    def sorted(self, w: str, name: str) -> str:
        """Half of the kernels by a table of two axes, the other half as they are."""
        table = self.constant(f"{name}.table", np.arange(16)[::-1].reshape(4, 4).copy())
        picked = self.op("Gather", [w, table], f"{name}.picked", axis=0)
        return self.op("Reshape", [picked, self.axes(f"{name}.shape", 16, -1, 3, 3)], f"{name}.weight")

    def split(self, w: str, name: str) -> str:
        """Two halves, each over its maximum, in the other order: Split has two outputs."""
        name_a, name_b = f"{name}.split_out0", f"{name}.split_out1"
        self.op("Split", [w], f"{name}.split", outputs=2, axis=0)
        parts = [
            self.op("Div", [h, self.op("ReduceMax", [h], f"{h}.max", keepdims=0)], f"{h}.div")
            for h in (name_b, name_a)
        ]
        return self.op("Concat", parts, f"{name}.weight", axis=0)

    def masked(self, w: str, name: str) -> str:
        """Causal kernels: a triangle of the weight."""
        return self.op("Trilu", [w], f"{name}.weight", upper=0)

    def kernels(self, w: str, name: str) -> str:
        """W + B A, and the result over its norm."""
        a, b = self.weight(f"{name}.a", 2, 9), self.weight(f"{name}.b", 16, 16, 3, 2)
        more = self.op(
            "MatMul",
            [
                b,
                self.op(
                    "Slice",
                    [a, *(self.axes(f"{name}.s{n}", v) for n, v in enumerate((0, 3, 1)))],
                    f"{name}.cut",
                ),
            ],
            f"{name}.ba",
        )
        return self.by_norm(self.op("Add", [w, more], f"{name}.sum"), f"{name}.norm")


WAYS: dict[str, Callable[[Nets, str, str], str]] = {
    name: getattr(Nets, name)
    for name in (
        "standardised",
        "by_norm",
        "by_batch",
        "spectral",
        "softmaxed",
        "sorted",
        "split",
        "masked",
        "kernels",
    )
}


def net(way: Callable[[Nets, str, str], str], ignored: bool = False, wide: int = 4) -> onnx.ModelProto:
    """Three convolutions; the weight of the second is computed (and of a fourth one, beside it)."""
    b = Nets(11)
    x = b.op("Relu", [b.conv("x", "first", 3, 16)], "relu1")
    w = way(b, b.weight("second.w", 16, 16, 3, 3), "second")
    y = b.op("Relu", [b.op("Conv", [x, w], "second", pads=[1] * 4)], "relu2")
    last = b.conv(y, "last", 16, wide)
    if ignored:
        v = way(b, b.weight("beside.w", 16, 3, 3, 3), "beside")
        side = b.op("Relu", [b.op("Conv", ["x", v], "beside", pads=[1] * 4)], "relu3")
        last = b.op("Add", [last, b.conv(side, "after", 16, wide)], "add")
    model = b.model({"x": ["N", 3, 8, 8]}, last)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", wide, 8, 8]))
    return model


@pytest.mark.parametrize("way", WAYS)
def test_computed_weights_are_cut_as_if_they_were_folded(way: str) -> None:
    model = net(WAYS[way])
    onnx.checker.check_model(model, full_check=True)
    found = half(model)
    assert exact(model, found) < 0.45  # of three layers all channels, or .6
    again = half(model)
    assert again.model.SerializeToString() == found.model.SerializeToString()
    assert onnxprune.verify(model, found.model, found.plan)["max_relative_error"] < 1e-4
    applied = onnxprune.apply(model, found.plan)
    assert applied.model.SerializeToString() == found.model.SerializeToString()


def test_a_folded_weight_is_what_onnxruntime_computes() -> None:
    model = net(WAYS["standardised"])
    found = analyse(Model.load(model), folds="needed")
    assert found.folded is not None
    feeds = feeds_of(model)
    for want, have in zip(run(model, feeds), run(found.model.to_proto(), feeds), strict=True):
        np.testing.assert_array_equal(want, have)
    assert "second.w" not in found.model


def test_nothing_to_cut_gives_the_input_back(tmp_path: Path) -> None:
    model = net(WAYS["standardised"])
    same = onnxprune.prune(model, ratio=0)
    assert same.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    (tmp_path / "in.onnx").write_bytes(model.SerializeToString())
    onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0)
    assert (tmp_path / "in.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


@pytest.mark.parametrize("name", ["beside.w", "beside.square", "^beside$", "beside.weight$"])
def test_what_is_left_alone_stays_as_it_was(name: str) -> None:
    """A name that went into a folded weight is understood; the nodes of an untouched one come back in their place."""
    model = net(WAYS["standardised"], ignored=True)
    found = half(model, ignore=(name,))
    assert not any(cut.tensor.startswith("beside") for cut in found.report.cuts)
    assert any(cut.tensor.startswith("second") for cut in found.report.cuts)
    before = [n.SerializeToString() for n in model.graph.node if "beside" in n.name]
    after = [n.SerializeToString() for n in found.model.graph.node if "beside" in n.name]
    assert before == after
    weights = {t.name: t for t in found.model.graph.initializer}
    assert all(weights[t.name] == t for t in model.graph.initializer if t.name.startswith("beside"))
    assert "second.w" not in weights
    exact(model, found)
    onnx.checker.check_model(found.model, full_check=True)


def test_only_names_what_went_into_a_weight() -> None:
    model = net(WAYS["standardised"], ignored=True)
    found = half(model, only=("^second.w$",))
    assert {cut.tensor for cut in found.report.cuts} == {"second.weight_out", "last.weight"}
    with pytest.raises(UsageError, match="matches no group, weight or node"):
        half(model, only=("^third.w$",))
    assert any("beside.w:" in line or "beside" in line for line in map(str, onnxprune.inspect(model).groups))


def test_a_weight_that_something_else_reads_stays_too() -> None:
    """The original weight is an output of the graph as well."""
    model = net(WAYS["standardised"], wide=64)
    model.graph.output.append(helper.make_tensor_value_info("second.w", TensorProto.FLOAT, [16, 16, 3, 3]))
    found = half(model)
    assert "second.w" in {t.name for t in found.model.graph.initializer}
    assert "second.weight_out" in {cut.tensor for cut in found.report.cuts}


def test_a_weight_isnt_folded_for_less_than_the_file_grows_by() -> None:
    """The same, where nothing that is as large can be cut along with it."""
    model = net(WAYS["standardised"])
    model.graph.output.append(helper.make_tensor_value_info("second.w", TensorProto.FLOAT, [16, 16, 3, 3]))
    with pytest.raises(NothingToPrune):
        half(model)


@pytest.mark.parametrize("kind", ["random", "input", "dequantised", "bomb", "dropout"])
def test_what_must_not_be_folded(kind: str) -> None:
    b = Nets(11)
    w = b.weight("w", 16, 3, 3, 3)
    if kind == "random":
        noise = b.op("RandomNormalLike", [w], "noise")
        w = b.op("Add", [w, noise], "sum")
    elif kind == "dequantised":
        q = b.constant("q", b.rng.integers(-90, 90, (16, 3, 3, 3)).astype(np.int8))
        w = b.op("DequantizeLinear", [q, b.constant("scale", np.float32(0.01))], "dq")
    elif kind == "dropout":
        w = b.op(
            "Dropout", [w, b.constant("p", np.float32(0.5)), b.constant("yes", np.array(True))], "dropout"
        )
    elif kind == "bomb":
        grown = b.op("ConstantOfShape", [b.axes("huge", 1 << 13, 1 << 12)], "grown")
        w = b.op("Add", [w, b.op("ReduceMax", [grown], "max", keepdims=0)], "sum")
    w = b.standardised(w, "layer")
    y = b.op("Relu", [b.op("Conv", ["x", w], "layer", pads=[1] * 4)], "relu")
    model = b.model({"x": ["N", 3, 8, 8]}, b.conv(y, "last", 16, 4))
    if kind == "input":
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 3, 3, 3]))
    found = analyse(Model.load(model), folds="weights")
    assert found.folded is None or "layer.weight_out" not in found.folded.tensors
    assert all("Dequantize" not in n.op_type for n in model.graph.node) or "q" in found.model
    made = {
        o for n in model.graph.node if n.op_type in ("DequantizeLinear", "RandomNormalLike") for o in n.output
    }
    assert not made & Finder(found.model, found.tracer).maker.keys()


def test_the_file_does_not_grow_for_a_fit() -> None:
    """B A alone is small; it is left as it is, and W + B A is folded only for samples."""
    b = Nets(3)

    def factors(name: str) -> str:
        return b.op("MatMul", [b.weight(f"{name}.b", 64, 2), b.weight(f"{name}.a", 2, 64)], name)

    small = factors("ba")
    x = b.op("Relu", [b.op("MatMul", ["x", small], "one")], "relu")
    whole = b.op(
        "Add",
        [b.weight("w", 64, 64), b.op("MatMul", [b.weight("b2", 64, 2), b.weight("a2", 2, 64)], "ba2")],
        "sum",
    )
    y = b.op(
        "MatMul", [b.op("Relu", [b.op("MatMul", [x, whole], "two")], "relu2"), b.weight("w3", 64, 4)], "three"
    )
    model = b.model({"x": ["N", 64]}, y)
    found = analyse(Model.load(model), folds="weights").folded
    assert found is not None
    assert set(found.tensors) == {"sum_out"}
    assert analyse(Model.load(model), folds="needed").folded is None
    fitted = onnxprune.prune(
        model, ratio=0.5, align=None, calib="synthetic", samples=40, recover="lstsq", rotate=False
    )
    assert fitted.report.calibration is not None
    assert "sum_out" in str(fitted.report.calibration["layers"]) or "two" in str(
        fitted.report.calibration["layers"]
    )
    applied = onnxprune.apply(model, fitted.plan)
    assert applied.report.after.parameters == fitted.report.after.parameters


def test_external_weights_stay_outside(tmp_path: Path) -> None:
    model = net(WAYS["standardised"])
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(copy, tmp_path / "in.onnx", save_as_external_data=True, location="in.bin", size_threshold=0)
    found = onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align=None)
    light = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    folded = next(t for t in light.graph.initializer if t.name == "second.weight_out")
    assert folded.data_location == TensorProto.EXTERNAL
    assert exact(model, found) < 0.45


def options(**more: Any) -> dict[str, Any]:
    return {"pattern": "2:4", **more}


def test_zeros_are_put_into_computed_weights() -> None:
    model = net(WAYS["standardised"], ignored=True)
    found = onnxprune.sparsify(model, **options(ignore=("beside.w",)))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in found.model.graph.initializer}
    grouped = np.moveaxis(weights["second.weight_out"], 1, -1).reshape(-1, 4)
    assert ((grouped != 0).sum(1) <= 2).all()
    assert "beside.w" in weights
    assert [n.name for n in found.model.graph.node if n.name.startswith("beside")] == [
        n.name for n in model.graph.node if n.name.startswith("beside")
    ]
    assert any(t.tensor == "second.weight_out" for t in inspect_sparsity(Model.load(model)).tensors)


def test_a_folded_weight_is_explained() -> None:
    model = net(WAYS["standardised"])
    found = onnxprune.explain(model, "second.w", 0)
    assert found.tensor == "second.weight_out"
    assert "second.weight_out:0" in {group["name"] for group in found.axes[0].groups}


def test_a_wrong_fold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verification runs the original, and compares the weights that it computes."""
    right = folding._values

    def wrong(*args: Any) -> dict[str, np.ndarray]:
        return {name: value * np.float32(1.01) for name, value in right(*args).items()}

    model = net(WAYS["standardised"])
    assert "folded weights" in half(model).report.checks
    monkeypatch.setattr(folding, "_values", wrong)
    with pytest.raises(VerificationError, match="isn't what the original computes"):
        half(model)


def test_each_member_of_a_family_has_back_what_was_folded_and_not_cut() -> None:
    b = Nets(3)
    factors = b.op("MatMul", [b.weight("b", 64, 2), b.weight("a", 2, 64)], "ba")
    whole = b.op("Add", [b.weight("w", 64, 64), factors], "sum")
    x = b.op("Relu", [b.op("MatMul", ["x", whole], "one")], "relu")
    x = b.op("Relu", [b.op("MatMul", [x, b.weight("w2", 64, 64)], "two")], "relu2")
    model = b.model({"x": ["N", 64]}, b.op("MatMul", [x, b.weight("w3", 64, 4)], "three"))
    more: dict[str, Any] = {
        "calib": "synthetic",
        "samples": 20,
        "recover": "none",
        "trials": 0,
        "rotate": False,
    }
    members = api.family(model, target=("params=0.95,0.9",), align=None, only=("w2",), **more)
    for target, member in members.items():
        assert [n.op_type for n in member.model.graph.node[:2]] == ["MatMul", "Add"], target
        alone = onnxprune.prune(model, target=(target,), align=None, only=("w2",), **more)
        assert member.model == alone.model
