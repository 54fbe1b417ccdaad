"""resolve_shapes and drop_dead: the same outputs, bit for bit, with less; and passes in a row."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pass_models import dims, error, ops, outputs, run
from small_models import Builder, attention, chain

import onnxprune
from onnxprune import Model
from onnxprune.journey import passes as passlist
from onnxprune.passes import drop_dead
from onnxprune.runtime.session import RunError, open_session

# resolve_shapes


def spelled_out(seq: int | str = "seq") -> onnx.ModelProto:
    """Spell a Reshape into heads as the TorchScript-based exporter does: from Shape, Gather and Concat."""
    b = Builder(5)
    x = b.linear("x", "up", 16, 24)
    shape = b.op("Shape", [x], "shape")
    parts = []
    for i in range(2):
        size = b.op("Gather", [shape, b.constant(f"at{i}", np.array(i, np.int64))], f"size{i}", axis=0)
        parts.append(b.op("Unsqueeze", [size, b.constant(f"axes{i}", np.array([0], np.int64))], f"one{i}"))
    width = b.op("Gather", [shape, b.constant("at2", np.array(2, np.int64))], "width", axis=0)
    each = b.op("Div", [width, b.constant("heads", np.array(4, np.int64))], "each")
    parts += [b.constant("four", np.array([4], np.int64)), b.op("Unsqueeze", [each, "axes0"], "last")]
    y = b.op("Reshape", [x, b.op("Concat", parts, "target", axis=0)], "split")
    y = b.op("Transpose", [y], "turn", perm=[0, 2, 1, 3])
    root = b.op("Sqrt", [b.op("Cast", [each], "float", to=TensorProto.FLOAT)], "root")
    return b.model({"x": ["batch", seq, 16]}, b.op("Div", [y, root], "scaled"))


def test_shape_arithmetic_becomes_constant() -> None:
    model = spelled_out()
    found = run(model, "resolve_shapes")
    assert ops(found) == ["MatMul", "Add", "Reshape", "Transpose", "Div"]
    constants = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer}
    reshape = next(n for n in found.graph.node if n.op_type == "Reshape")
    assert constants[reshape.input[1]].tolist() == [0, 0, 4, 6]
    assert all(error(model, found, sizes) == 0 for sizes in ((1, 1), (2, 5), (3, 130)))
    assert found.graph.input == model.graph.input
    assert found.graph.output == model.graph.output


def test_sizes_that_follow_the_input_stay_computed() -> None:
    b = Builder(6)
    shape = b.op("Shape", ["x"], "shape")
    one = b.constant("one", np.array([1], np.int64))
    length = b.op(
        "Slice",
        [shape, one, b.constant("two", np.array([2], np.int64)), b.constant("zero", np.array([0], np.int64))],
        "n",
    )
    capped = b.op(
        "Min", [length, b.constant("cap", np.array([5], np.int64))], "capped"
    )  # 5 for all but short inputs
    model = b.model({"x": ["batch", "seq", 4]}, b.op("Slice", ["x", "zero", capped, one], "part"))
    found = run(model, "resolve_shapes")
    assert all(error(model, found, sizes) == 0 for sizes in ((1, 3), (2, 5), (2, 9)))
    assert "Min" in ops(found)


def test_a_merge_of_two_dynamic_axes_keeps_minus_one() -> None:
    b = Builder(6)
    shape = b.op("Shape", ["x"], "shape")
    at = [b.constant(f"at{i}", np.array([i], np.int64)) for i in range(3)]
    sizes = [b.op("Gather", [shape, name], f"size{i}", axis=0) for i, name in enumerate(at)]
    rows = b.op("Mul", sizes[:2], "rows")
    y = b.op("Reshape", ["x", b.op("Concat", [rows, sizes[2]], "target", axis=0)], "flat")
    model = b.model({"x": ["batch", "seq", 4]}, b.op("Relu", [y], "relu"))
    found = run(model, "resolve_shapes")
    assert ops(found) == ["Reshape", "Relu"]
    assert numpy_helper.to_array(found.graph.initializer[-1]).tolist() == [-1, 4]
    assert all(error(model, found, s) == 0 for s in ((1, 1), (2, 5)))


def test_a_size_that_can_be_overridden_is_not_known() -> None:
    model = spelled_out()
    model.graph.input.append(helper.make_tensor_value_info("heads", TensorProto.INT64, []))
    found = run(model, "resolve_shapes")
    assert "heads" in dims(found)
    assert "Div" in ops(found)[:-1]


def test_nothing_to_resolve_gives_the_model_itself() -> None:
    model = Model.load(chain())
    assert passlist.apply(model, passlist.parse("resolve_shapes,drop_dead,shrink")) is model


def test_what_was_dead_before_goes_with_the_arithmetic_that_it_reads() -> None:
    model = spelled_out()
    model.graph.node.append(helper.make_node("Add", ["each_out", "last_out"], ["lost"], name="lost"))
    found = run(model, "resolve_shapes")
    onnx.checker.check_model(found, full_check=True)
    assert "lost" not in [n.name for n in found.graph.node]
    assert error(model, found) == 0


def test_half_floats_are_not_known() -> None:
    """Kernels for half floats may calculate in single, and round elsewhere than numpy."""
    model = spelled_out()
    cast = next(n for n in model.graph.node if n.op_type == "Cast")
    cast.attribute[0].i = TensorProto.FLOAT16
    root = next(n for n in model.graph.node if n.op_type == "Sqrt")
    at = list(model.graph.node).index(root) + 1
    model.graph.node.insert(at, helper.make_node("Cast", ["root_out"], ["single"], to=TensorProto.FLOAT))
    model.graph.node[-1].input[1] = "single"
    del model.graph.value_info[:]
    found = run(model, "resolve_shapes")
    assert "Sqrt" in ops(found)
    assert error(model, found) == 0


@pytest.mark.long
@pytest.mark.parametrize("passes", ["resolve_shapes", "drop_dead", "shrink"])
def test_onnx_node_models_compute_the_same(passes: str) -> None:
    """All 1,884 of them go through, and what comes out otherwise computes the same, bit for bit."""
    from onnx.backend.test.case.node import collect_testcases

    changed = 0
    for case in collect_testcases(None):
        model = Model.load(case.model)
        found = passlist.apply(model, passlist.parse(passes))
        if found is model:
            continue
        try:
            before = open_session(model)
        except RunError:
            continue
        changed += 1
        inputs = [np.asarray(x) for x in case.data_sets[0][0]]
        feeds = dict(zip([v.name for v in case.model.graph.input], inputs, strict=False))
        want, have = before.run(feeds), open_session(found).run(feeds)
        for name in want:
            np.testing.assert_array_equal(np.asarray(have[name]), np.asarray(want[name]), err_msg=case.name)
    assert changed > 100 or passes == "shrink"


# drop_dead


def test_what_no_output_needs_goes() -> None:
    model = chain()
    graph = model.graph
    graph.node.append(helper.make_node("Relu", ["conv1.relu_out"], ["lost"], name="lost"))
    graph.node.append(helper.make_node("Add", ["lost", "unread"], ["lost2"], name="lost2"))
    graph.initializer.append(numpy_helper.from_array(np.ones(8, np.float32), "unread"))
    graph.initializer.append(numpy_helper.from_array(np.ones(900, np.float32), "nobody"))
    graph.value_info.append(helper.make_tensor_value_info("lost", TensorProto.FLOAT, None))
    found = run(model, "drop_dead")
    assert found == chain()


def test_inputs_and_what_bodies_read_stay() -> None:
    b = Builder(8)
    inner = helper.make_graph(
        [helper.make_node("Mul", ["doubled", "factor"], ["then_out"])],
        "then",
        [],
        [helper.make_tensor_value_info("then_out", 1, None)],
    )
    outer = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else_out"])],
        "else",
        [],
        [helper.make_tensor_value_info("else_out", 1, None)],
    )
    b.op("Add", ["x", "x"], "doubled")
    b.nodes[-1].output[0] = "doubled"
    b.constant("factor", np.array([3.0, 4.0, 5.0, 6.0], np.float32))
    y = b.op("If", [b.constant("which", np.array(True))], "if", then_branch=inner, else_branch=outer)
    b.op("Neg", ["x"], "dead")
    model = b.model({"x": ["n", 4], "spare": [1]}, y)
    found = run(model, "drop_dead")
    assert ops(found) == ["Add", "If"]
    assert [v.name for v in found.graph.input] == ["x", "spare"]
    assert set(dims(found)) == {"factor", "which"}
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    feeds = {"x": x, "spare": np.zeros(1, np.float32)}
    assert np.array_equal(outputs(model, feeds)[0], outputs(found, feeds)[0])


def test_training_info_and_defaults_of_inputs_stay() -> None:
    model = chain()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["lost"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "default"))
    model.graph.input.append(helper.make_tensor_value_info("default", TensorProto.FLOAT, [2]))
    found = run(model, "drop_dead")
    assert "default" in dims(found)
    assert len(found.graph.node) == len(model.graph.node) - 1
    model.training_info.add()
    assert run(model, "drop_dead") == model


def test_graphsurgeon_agrees_and_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["lost"]))
    kept = drop_dead._surgeon(Model.load(model))
    assert kept is not None
    assert "lost" not in kept
    assert "fc_out" in kept
    monkeypatch.setattr("onnx_graphsurgeon.import_onnx", lambda graph: 1 / 0)
    assert drop_dead._surgeon(Model.load(model)) is None
    assert run(model, "drop_dead") == chain()


def test_a_node_that_graphsurgeon_keeps_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain()
    model.graph.node.append(helper.make_node("Relu", ["x"], ["lost"]))
    monkeypatch.setattr(drop_dead, "_surgeon", lambda model: {"lost"})
    assert run(model, "drop_dead") == model


# together


def test_passes_in_a_row(tmp_path: Path) -> None:
    onnx.save(attention(), tmp_path / "in.onnx")
    passes = "resolve_shapes,prune{ratio=0.5 align=none},drop_dead,shrink"
    small = onnxprune.run(tmp_path / "in.onnx", passes, tmp_path / "out.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"), full_check=True)
    assert dims(small.to_proto())["attn.q.weight"] == (10, 12)


@pytest.mark.parametrize("kind", ["two unknown", "allowzero"])
def test_a_target_that_zeros_and_one_minus_one_cannot_say_stays(kind: str) -> None:
    b = Builder(6)
    shape = b.op("Shape", ["x"], "shape")
    at = [b.constant(f"at{i}", np.array([i], np.int64)) for i in range(2)]
    parts = [b.op("Gather", [shape, name], f"size{i}", axis=0) for i, name in enumerate(at)]
    if kind == "two unknown":
        two = b.constant("two", np.array([2], np.int64))
        parts = [b.op("Mul", [name, two], f"double{i}") for i, name in enumerate(parts)]
    else:
        parts += [b.constant("rest", np.array([2, 2], np.int64))]
    more = {"allowzero": 1} if kind == "allowzero" else {}
    y = b.op("Reshape", ["x", b.op("Concat", parts, "target", axis=0)], "reshaped", **more)
    model = b.model({"x": ["batch", "seq", 4]}, b.op("Relu", [y], "relu"))
    found = run(model, "resolve_shapes")
    assert all(error(model, found, s) == 0 for s in ((1, 3), (2, 5)))
