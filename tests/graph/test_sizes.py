"""What follows the sizes of dynamic axes must not be cut: checked at other sizes, from outside."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from nets import build, node, normal
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.graph import analysis
from onnxprune.model import Model

from size_models import CASES, Case, Sized  # isort: skip

TOLERANCE = 1e-4
MOST_P = 9


def feeds(model: onnx.ModelProto, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Random inputs of a batch and a length; a past has as many as fit."""
    rng, sizes = np.random.default_rng(5), {"N": size[0], "T": size[1], "P": MOST_P}
    shapes = {
        v.name: [d.dim_value or sizes[d.dim_param] for d in v.type.tensor_type.shape.dim]
        for v in model.graph.input
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def run(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, given)[0])


def masked(model: onnx.ModelProto, cuts: list) -> onnx.ModelProto:
    """The original with the slices that went set to zero; shares no code with the tool."""
    found = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in found.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for cut in cuts:
            if cut.tensor == tensor.name:
                array[(slice(None),) * cut.axis + (np.asarray(cut.removed),)] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return found


def errors(case: Case, model: onnx.ModelProto) -> tuple[list, list[float]]:
    """Prune under one binding; return the cuts and the errors at other sizes (1 where the result doesn't run)."""
    shapes = {n: a.shape for n, a in feeds(model, case.at).items()}
    result = onnxprune.prune(model, ratio=0.5, align=1, verify=False, input_shapes=shapes)
    cuts = result.report.cuts
    assert cuts
    twin, found = masked(model, cuts), []
    for size in (case.at, *case.runs):
        given = feeds(model, size)
        want = run(twin, given)
        assert np.isfinite(want).all()
        assert np.abs(want).max() > 1e-3
        try:
            have = run(result.model, given)
        except Exception:  # onnxruntime has no common class for what can go wrong
            found.append(1.0)
            continue
        found.append(float(np.abs(have - want).max() / np.abs(want).max()))
    return cuts, found


@pytest.mark.parametrize("name", CASES)
def test_tables_stay_whole_and_all_sizes_hold(name: str) -> None:
    case = CASES[name]
    model = case.model()
    cuts, found = errors(case, model)
    assert max(found) <= TOLERANCE
    assert ("pos", case.axis) not in {(cut.tensor, cut.axis) for cut in cuts}
    assert case.cut <= {(cut.tensor, cut.axis) for cut in cuts}


WRONG = ("sliced", "range", "range of vectors", "position ids", "window", "from the end", "last", "clamped", "causal",
         "alibi", "rotary", "class token", "where", "split", "folded")  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_check_finds_what_the_locks_prevent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "follow", lambda *_: None)
    assert max(errors(CASES[name], CASES[name].model())[1]) > 100 * TOLERANCE


def test_a_range_of_vectors_needs_no_run() -> None:
    assert not analysis.analyse(Model.load(CASES["range of vectors"].model())).tracer.measured


def test_a_fixed_length_is_cut_as_before() -> None:
    case = Case(CASES["sliced"].build, at=(2, 12), runs=((3, 12),))
    cuts, found = errors(case, case.model(time=12))
    assert max(found) <= TOLERANCE
    assert ("pos", 1) in {(cut.tensor, cut.axis) for cut in cuts}  # rows that nobody can read


@pytest.mark.parametrize("version", [7, 8, 9])
def test_scales_are_an_attribute_in_old_models(version: int) -> None:
    """Pictures of any size, made larger as versions 7 and 8 say it, and as 9 does."""
    weights = {"a": normal(16, 3, 3, 3), "b": normal(5, 16, 3, 3), "scales": np.float32([1, 1, 2, 2])}
    model = build(
        [
            node("Conv", "x a", "c", pads=[1] * 4),
            node("Relu", "c", "r"),
            node("Identity", "r", "u"),
            node("Conv", "u b", "y"),
        ],
        weights,
        ("N", 3, "H", "W"),
    )
    given = {"scales": [1.0, 1.0, 2.0, 2.0]} if version < 9 else {}
    model.graph.node[2].CopyFrom(node("Upsample", "r" if given else "r scales", "u", **given))
    del model.graph.value_info[:]
    model.opset_import[0].version, model.ir_version = version, 4
    result = onnxprune.prune(model, ratio=0.5, align=1)
    assert result.report.after.parameters < 0.6 * result.report.before.parameters
    twin = masked(model, result.report.cuts)
    for height, width in ((8, 8), (5, 11)):
        x = {"x": np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)}
        np.testing.assert_allclose(run(twin, x), run(result.model, x), atol=1e-4)


def test_the_parts_of_complex_numbers_are_two_at_all_sizes() -> None:
    """The last axis of a DFT, which a Squeeze takes off again, follows no size of an input."""
    nodes = [
        node("Conv", "x w1", "h"),
        node("Unsqueeze", "h last", "u"),
        node("DFT", "u", "d", axis=3),
        node("Slice", "d one two last", "s"),
        node("Squeeze", "s last", "q"),
        node("Conv", "q w2", "y"),
    ]
    numbers = {name: np.array([n]) for name, n in {"last": -1, "one": 1, "two": 2}.items()}
    weights = {"w1": normal(16, 3, 1, 1), "w2": normal(6, 16, 1, 1), **numbers}
    model = build(nodes, weights, ("N", 3, "H", "W"))
    result = onnxprune.prune(model, ratio=0.5, align="none")
    assert {(c.tensor, c.axis, len(c.removed)) for c in result.report.cuts} == {("w1", 0, 8), ("w2", 1, 8)}


def test_channels_are_taken_apart_beside_lengths_that_are_spelled_in_numbers() -> None:
    """A shuffle of channels whose exporter computes what a convolution leaves of height and width."""
    weights = {
        "a": normal(16, 3, 3, 3), "b": normal(5, 16, 3, 3), "two": np.int64([2]), "eight": np.int64([8]),
        "sixteen": np.int64([16]), "one": np.int64(1), "half": np.int64(2),
    }  # fmt: skip
    nodes = [node("Shape", "x", "n", start=0, end=1)]
    for axis, name in ((2, "h"), (3, "w")):  # (size - 1) // 2 + 1
        nodes += [
            node("Shape", "x", f"{name}0", start=axis, end=axis + 1),
            node("Sub", f"{name}0 one", f"{name}1"),
            node("Div", f"{name}1 half", f"{name}2"),
            node("Add", f"{name}2 one", name),
        ]
    nodes += [
        node("Conv", "x a", "c", pads=[1] * 4, strides=[2, 2]),
        node("Concat", "n two eight h w", "apart", axis=0),
        node("Reshape", "c apart", "parts"),
        node("Transpose", "parts", "turned", perm=[0, 2, 1, 3, 4]),
        node("Concat", "n sixteen h w", "whole", axis=0),
        node("Reshape", "turned whole", "shuffled"),
        node("Conv", "shuffled b", "y"),
    ]
    model = build(nodes, weights, ("N", 3, "H", "W"))
    result = onnxprune.prune(model, ratio=0.5, align=1)
    assert {(cut.tensor, cut.axis) for cut in result.report.cuts} == {("a", 0), ("b", 1)}
    twin = masked(model, result.report.cuts)
    for height, width in ((8, 8), (9, 12)):
        x = {"x": np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)}
        np.testing.assert_allclose(run(twin, x), run(result.model, x), atol=1e-4)


@pytest.mark.parametrize("channels", [False, True])
def test_channels_pass_a_pad_of_which_only_rows_and_columns_are_calculated(channels: bool) -> None:
    """TF's "same" padding: as many rows and columns as the sizes lack. Channels that are padded so are locked."""
    b = Sized()
    two = b.constant("two", np.float32(2))
    h = b.op("Conv", ["x", b.weight("a", 16, 3, 3, 3)], "first", pads=[1] * 4)
    more = []
    for axis in (2, 3):
        size = b.floats(b.size(h, axis))
        steps = b.do("Sub", b.do("Ceil", b.do("Div", size, two)), b.constant(f"one{axis}", np.float32(1)))
        read = b.do("Add", b.do("Mul", steps, two), b.constant(f"three{axis}", np.float32(3)))
        lack = b.do("Clip", b.do("Sub", read, size), b.constant(f"none{axis}", np.float32(0)))
        before = b.do("Floor", b.do("Div", lack, two))
        more.append([b.do("Cast", n, to=TensorProto.INT64) for n in (before, b.do("Sub", lack, before))])
    (top, bottom), (left, right) = ([b.do("Unsqueeze", n, [0]) for n in pair] for pair in more)
    none = b.do("ConstantOfShape", [4], value=helper.make_tensor("v", TensorProto.INT64, [1], [0]))
    # as PyTorch writes it: (left, right), (top, bottom), ... of the last axis first, then turned around
    flat = b.do("Concat", left, right, top, bottom, none, axis=0)
    pairs = b.do("Slice", b.do("Reshape", flat, [-1, 2]), [-1], [-(2**63) + 1], [0], [-1])
    amounts = b.do("Reshape", b.do("Transpose", pairs, perm=[1, 0]), [-1])
    if channels:
        seventeen = b.constant("seventeen", np.float32(17))
        lack = b.do("Clip", b.do("Sub", seventeen, b.floats(b.size(h, 2))), b.constant("none", np.float32(0)))
        bottom = b.do("Unsqueeze", b.do("Cast", lack, to=TensorProto.INT64), [0])
        amounts = b.do("Concat", [0], [0], [0, 0], [0], bottom, [0, 0], axis=0)
    h = b.do("Relu", b.do("Pad", h, amounts))
    wide = 17 if channels else 16
    y = b.op("Conv", [h, b.weight("b", 5, wide, 3, 3)], "last", strides=[2, 2])
    at = {"x": (2, 3, 16, 16)}
    model = b.model({"x": ("N", 3, "H", "W")}, y)
    if channels:
        with pytest.raises(onnxprune.errors.NothingToPrune, match="padded by a number that follows"):
            onnxprune.prune(model, ratio=0.5, align=1, input_shapes=at)
        return
    result = onnxprune.prune(model, ratio=0.5, align=1, input_shapes=at)
    assert {(cut.tensor, cut.axis) for cut in result.report.cuts} == {("a", 0), ("b", 1)}
    twin = masked(model, result.report.cuts)
    for height, width in ((8, 8), (5, 12), (9, 3)):
        x = {"x": np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)}
        np.testing.assert_allclose(run(twin, x), run(result.model, x), atol=1e-4)


@pytest.mark.parametrize("given", [False, True])
def test_sizes_are_taken_at_which_inner_maps_have_more_than_one_element(given: bool) -> None:
    """Groups of channels that are normalised: of a map of one element, nobody can tell that it is one by chance."""
    b = Sized()
    pool = b.op("MaxPool", ["x"], "pool", kernel_shape=[64, 64], strides=[64, 64])
    h = b.op("Conv", [pool, b.weight("a", 32, 3, 1, 1)], "first")
    ones, zeros = b.constant("ones", np.ones(4, np.float32)), b.constant("zeros", np.zeros(4, np.float32))
    normed = b.do("InstanceNormalization", b.do("Reshape", h, [0, 4, -1]), ones, zeros)
    h = b.do("Relu", b.do("Reshape", normed, b.do("Shape", h)))
    model = b.model({"x": ("N", 3, "H", "W")}, b.op("Conv", [h, b.weight("b", 5, 32, 1, 1)], "last"))
    if given:  # the user's sizes are taken as they are
        with pytest.raises(onnxprune.errors.NothingToPrune, match="reshaped in a way that follows the size"):
            onnxprune.prune(model, ratio=0.5, align=1, input_shapes={"x": (2, 3, 64, 64)})
        return
    assert analysis.analyse(Model.load(model)).inputs == {"x": (2, 3, 128, 128)}
    result = onnxprune.prune(model, ratio=0.5, align=1)
    assert {(cut.tensor, cut.axis) for cut in result.report.cuts} >= {("a", 0), ("b", 1)}
    twin = masked(model, result.report.cuts)
    for height, width in ((64, 64), (64, 200), (150, 130)):
        x = {"x": np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)}
        np.testing.assert_allclose(run(twin, x), run(result.model, x), atol=1e-4)


@pytest.mark.parametrize("rows", [False, True])
def test_longer_sizes_are_left_where_they_do_not_fit(rows: bool) -> None:
    """The same map of one element in a model that also holds rows of its own against those of the input."""
    b = Sized()
    x = b.do("Add", "x", b.weight("rows", 3, 64 if rows else 1, 64 if rows else 1))
    pool = b.op("MaxPool", [x], "pool", kernel_shape=[64, 64], strides=[64, 64])
    h = b.op("Conv", [pool, b.weight("a", 32, 3, 1, 1)], "first")
    h = b.do("Reshape", b.do("Relu", b.do("Reshape", h, [0, 4, -1])), b.do("Shape", h))
    model = b.model({"x": ("N", 3, "H", "W")}, b.op("Conv", [h, b.weight("b", 5, 32, 1, 1)], "last"))
    size = 64 if rows else 128
    assert analysis.analyse(Model.load(model)).inputs["x"] == (2, 3, size, size)


def test_an_axis_beside_its_own_last_element_is_as_long_as_it_is() -> None:
    """An encoding of places divides by the last of them: a slice of one, or of none where nothing is in front."""
    b = Sized()
    h = b.op("Conv", ["x", b.weight("a", 16, 3, 3, 3)], "first", strides=[2, 2], pads=[1] * 4)
    rows, columns = (b.sizes(h, axis) for axis in (2, 3))
    grid = b.do("Add", b.do("Range", 0, b.size(h, 2), 1), 1)
    grid = b.do("Tile", b.do("Unsqueeze", grid, [0, 2]), b.do("Concat", [1], [1], columns, axis=0))
    last = b.do("Slice", b.floats(grid), [-1], [2**63 - 1], [1])
    share = b.do("Unsqueeze", b.do("Div", b.floats(grid), last), [1])
    code = b.op("Conv", [share, b.weight("p", 16, 1, 1, 1)], "places")
    flat = [
        b.do("Concat", b.sizes("x", 0), [16], [-1], axis=0),
        b.do("Concat", [1], [-1], b.do("Mul", rows, columns), axis=0),
    ]
    h = b.do("Relu", b.do("Add", b.do("Reshape", h, flat[0]), b.do("Reshape", code, flat[1])))
    model = b.model({"x": ("N", 3, "H", "W")}, b.op("Conv", [h, b.weight("b", 5, 16, 1)], "last"))
    result = onnxprune.prune(model, ratio=0.5, align=1)
    assert {(cut.tensor, cut.axis) for cut in result.report.cuts} == {("a", 0), ("p", 0), ("b", 1)}
    twin = masked(model, result.report.cuts)
    for height, width in ((8, 8), (5, 12), (1, 3)):
        x = {"x": np.random.default_rng(0).normal(size=(2, 3, height, width)).astype(np.float32)}
        np.testing.assert_allclose(run(twin, x), run(result.model, x), atol=1e-4)


@pytest.mark.parametrize("length", [12, 13])
@pytest.mark.parametrize(
    "name", "TABCDE"
)  # what stands for a length comes of its name, even for some, odd for others
def test_a_remainder_is_no_number_of_its_own(name: str, length: int) -> None:
    """Rows for even and for odd lengths: of half of a length, rounded, nothing is known."""

    def build(b: Sized, h: str) -> str:
        size = b.size("x", 1)
        odd = b.do("Sub", size, b.do("Mul", b.do("Div", size, 2), 2))
        return b.do("Add", h, b.do("Gather", b.table(4, 32), odd))

    shapes = {"x": (2, length, 16)}
    found = analysis.analyse(Model.load(Case(build).model(name)), input_shapes=shapes)
    assert ("pos", 0) in {(f.tensor, f.axis) for f in found.frozen}


def test_an_exact_quotient_of_lengths_is_one() -> None:
    """Twice a length, halved, is the length: also where floats are rounded, and where channels hang on it."""
    b = Sized()
    h = b.op("Conv", ["x", b.weight("a", 16, 3, 1, 1)], "first")
    area = b.do("Mul", b.size(h, 2), b.size(h, 3))
    once = b.do("Div", b.do("Mul", area, 2), 2)
    half = b.do("Mul", b.floats(b.do("Mul", once, 4)), b.constant("quarter", np.float32(0.25)))
    once = b.do("Cast", b.do("Floor", half), to=TensorProto.INT64)
    target = b.do("Concat", b.sizes("x", 0), [-1], b.do("Unsqueeze", once, [0]), axis=0)
    h = b.do("Relu", b.do("Reshape", h, target))
    model = b.model({"x": ("N", 3, "H", "W")}, b.op("Conv", [h, b.weight("b", 5, 16, 1)], "last"))
    result = onnxprune.prune(model, ratio=0.5, align=1)
    assert {(cut.tensor, cut.axis) for cut in result.report.cuts} == {("a", 0), ("b", 1)}
