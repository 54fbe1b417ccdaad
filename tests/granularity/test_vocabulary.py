"""Vocabulary: shorter tables give for ids that stay what the whole ones gave, whatever form they have."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from vocabulary_models import POSITIONS, WORDS, Net, language

from onnxprune.cut.vocabulary import renumbered, shortened
from onnxprune.graph.analysis import analyse
from onnxprune.graph.inline import inline
from onnxprune.graph.vocabulary import Vocabulary
from onnxprune.model import Model
from onnxprune.proof.verify import verify
from onnxprune.proof.vocabulary import cleaned
from onnxprune.runtime.session import open_session

KEEP = np.array([0, 3, 5, 7, 11, 20, 39])
SIZES = [(1, 1), (2, 5), (3, POSITIONS)]
NETS: dict[str, dict[str, Any]] = {
    "tied": {},
    "own head": {"head": "own"},
    "no head": {"head": "none"},
    "argmax": {"head": "argmax"},
    "a scale for each row": {"table": "rows"},
    "a scale behind": {"table": "behind", "head": "own"},
    "blocks": {"table": "blocks", "head": "own"},
    "a word of its own": {"start": True},
    "int32": {"kind": TensorProto.INT32},
}


def vocabulary_of(model: onnx.ModelProto) -> Vocabulary:
    vocabulary = Vocabulary.of(analyse(inline(Model.load(model))))
    assert vocabulary is not None
    return vocabulary


def run(model: Model | onnx.ModelProto, **given: np.ndarray) -> dict[str, np.ndarray]:
    return open_session(Model.load(model)).run(given)


def ids_for(model: onnx.ModelProto, ids: np.ndarray) -> np.ndarray:
    kind = model.graph.input[0].type.tensor_type.elem_type
    return ids.astype(helper.tensor_dtype_to_np_dtype(kind))


@pytest.mark.parametrize("name", NETS)
def test_what_stays_gives_the_same(name: str) -> None:
    model = language(**NETS[name])
    vocabulary = vocabulary_of(model)
    keep = vocabulary.closed(KEEP)
    assert keep.tolist() == KEEP.tolist()
    cut = shortened(vocabulary, keep, 5)
    rng = np.random.default_rng(1)
    for size in SIZES:
        ids = ids_for(model, rng.choice(keep, size))
        any_ids = ids_for(model, rng.integers(0, WORDS, size))
        clean = ids_for(model, np.where(np.isin(any_ids, keep), any_ids, 5))
        new = ids_for(model, np.searchsorted(keep, ids))
        for before, after in (
            (run(model, ids=ids), run(cut.model, ids=ids)),
            (run(model, ids=clean), run(cut.model, ids=any_ids)),
            (run(model, ids=ids), run(renumbered(cut.model), ids=new)),
        ):
            assert before["logits"].shape[-1] == WORDS if "logits" in before else True
            for output, value in before.items():
                expected = value[..., keep] if output == "logits" else value
                np.testing.assert_array_equal(after[output], expected)
    for removed in cut.cuts:
        assert len(removed.removed) == WORDS - len(keep), removed
    assert all(cut.model.info(w).dims.count(len(keep)) == 1 for w in vocabulary.weights)
    assert cut.model.info("positions").dims[0] == POSITIONS


@pytest.mark.parametrize("name", NETS)
def test_law_1_holds_and_sees_a_wrong_id(name: str) -> None:
    model = language(**NETS[name])
    vocabulary = vocabulary_of(model)
    keep = vocabulary.closed(KEEP)
    cut, analysis = shortened(vocabulary, keep, 5), vocabulary.analysis
    given = [{"ids": ids_for(model, np.resize(np.arange(WORDS), (4, 10)))}]
    assert verify(analysis, cut.dead, cut.model, masked=cleaned(vocabulary, keep, 5), inputs=given).passed
    assert (
        verify(analysis, cut.dead, cut.model, masked=cleaned(vocabulary, keep, 3), inputs=given).status
        == "failed"
    )


def test_a_wrong_row_is_seen() -> None:
    vocabulary = vocabulary_of(language())
    cut = shortened(vocabulary, KEEP, 0)
    words = np.array(cut.model.weight("words"))
    words[[0, 1]] = words[[1, 0]]
    cut.model.put("words", words)
    masked = cleaned(vocabulary, KEEP, 0)
    given = [{"ids": np.resize(KEEP, (2, 9))}]
    assert verify(vocabulary.analysis, cut.dead, cut.model, masked=masked, inputs=given).status == "failed"


def test_positions_are_no_vocabulary() -> None:
    vocabulary = vocabulary_of(language())
    assert vocabulary.size == WORDS
    assert vocabulary.weights == ["words", "bias"]
    assert list(vocabulary.ids) == ["ids"]


def test_the_table_is_named_first() -> None:
    assert vocabulary_of(language(table="blocks", head="own")).weights == [
        "words",
        "block_scales",
        "block_zeros",
    ]
    assert vocabulary_of(language(table="rows", head="own")).weights == ["words", "scales"]


def test_a_model_without_a_table_has_none() -> None:
    net = Net(TensorProto.FLOAT)
    net.op("MatMul", ["ids", net.weight("w", 6, 4)], "out")
    model = net.model({"out": (TensorProto.FLOAT, ["N", 4])})
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    assert Vocabulary.of(analyse(Model.load(model))) is None


def test_what_looks_at_all_words_freezes_a_tied_table() -> None:
    assert "normalised over" in vocabulary_of(language(head="softmax")).frozen
    assert not vocabulary_of(language()).frozen


def test_a_head_that_is_chosen_from_stays_whole() -> None:
    vocabulary = vocabulary_of(language(head="argmax"))
    cut = shortened(vocabulary, KEEP, 0).model
    assert cut.info("head").dims == (8, WORDS)
    assert cut.info("words").dims == (len(KEEP), 8)


def test_words_that_the_graph_holds_stay() -> None:
    vocabulary = vocabulary_of(language(start=True))
    assert vocabulary.closed([1]).tolist() == [1, 7]


@pytest.mark.parametrize("how", ["before", "instead"])
def test_words_that_the_graph_adds_stay(how: str) -> None:
    """A prompt of the graph's own, in front of the ids, or in the place of some."""
    net = Net()
    words = net.weight("words", WORDS, 4)
    if how == "before":
        prompt = net.put("prompt", np.array([[8, 9, 31]]))
        looked = net.op("Gather", [words, net.op("Concat", [prompt, "ids"], "joined", axis=1)], "looked")
    else:
        places = net.op("Equal", ["ids", net.put("pad", np.array(3))], "is_pad")
        other = net.op("Where", [places, net.put("prompt", np.array([8, 9, 31])), "ids"], "replaced")
        looked = net.op("Gather", [words, other], "looked")
    net.op("MatMul", [looked, net.weight("last", 4, 3)], "out")
    model = net.model({"out": (TensorProto.FLOAT, [])})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    vocabulary = vocabulary_of(onnx.shape_inference.infer_shapes(model))
    keep = vocabulary.closed([0, 3, 5])
    assert keep.tolist() == [0, 3, 5, 8, 9, 31]
    ids = np.array([[0, 3, 5]])
    cut = shortened(vocabulary, keep, 0).model
    before = run(model, ids=ids)["out"]
    np.testing.assert_array_equal(before, run(cut, ids=ids)["out"])


def test_a_table_of_ids_freezes() -> None:
    net = Net()
    words = net.weight("words", WORDS, 4)
    prompt = net.op("Gather", [words, net.put("prompt", np.array([[8, 9], [9, 31]]))], "prompted")
    whole = net.op("ReduceMean", [prompt, net.put("axes", np.array([0, 1]))], "mean", keepdims=0)
    both = net.op("Add", [net.op("Gather", [words, "ids"], "looked"), whole], "both")
    net.op("MatMul", [both, net.weight("last", 4, 3)], "out")
    vocabulary = vocabulary_of(net.model({"out": (TensorProto.FLOAT, ["N", "T", 3])}))
    assert vocabulary.frozen == "picked by a table of indices (Gather 'prompted_node')"


def test_who_compares_ids_sees_the_old_ones() -> None:
    model = language(pad=True)
    vocabulary = vocabulary_of(model)
    assert vocabulary.tied == "Equal 'is_pad_node' reads the numbers of 'ids', too"
    assert not vocabulary_of(language()).tied
    ids = np.array([[0, 3, 39, 3, 8]])
    after = run(shortened(vocabulary, KEEP, 3).model, ids=ids)
    np.testing.assert_array_equal(after["mask"], [[0, 1, 0, 1, 0]])
    before = run(model, ids=np.where(ids == 8, 3, ids))
    np.testing.assert_array_equal(after["logits"], before["logits"][..., KEEP])


#: What stands between an input and a lookup -> whether the lookup reads its numbers as they are.
BETWEEN: dict[str, tuple[Any, bool]] = {
    "added": (lambda net: net.op("Add", ["ids", net.put("more", np.array(1))], "moved"), False),
    "joined": (
        lambda net: net.op("Concat", ["ids", net.op("Mul", ["ids", "ids"], "two")], "moved", axis=1),
        False,
    ),
    "identity": (lambda net: net.op("Identity", ["ids"], "moved"), True),
    "unsqueeze": (lambda net: net.op("Unsqueeze", ["ids", net.put("axis", np.array([1]))], "moved"), True),
    "cast": (lambda net: net.op("Cast", ["ids"], "moved", to=TensorProto.INT32), True),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_ids_may_be_moved_and_not_changed(name: str) -> None:
    between, same = BETWEEN[name]
    net = Net()
    looked = net.op("Gather", [net.weight("words", WORDS, 4), between(net)], "looked")
    net.op("MatMul", [looked, net.weight("last", 4, 3)], "out")
    model = net.model({"out": (TensorProto.FLOAT, [])})
    model.graph.output[0].type.tensor_type.ClearField("shape")
    vocabulary = vocabulary_of(onnx.shape_inference.infer_shapes(model))
    why = "" if same else "Gather 'looked_node' looks up ids that the graph computes"
    assert vocabulary.tied == why
    keep = np.arange(0, WORDS, 2)
    ids = np.random.default_rng(0).integers(0, 3, (2, 5)) * 2 + (name == "added")
    before, after = run(model, ids=ids), run(shortened(vocabulary, keep, 0).model, ids=ids)
    np.testing.assert_array_equal(before["out"], after["out"])


def test_a_word_of_one_node_of_two_that_are_called_alike() -> None:
    """Another lookup of the same axis, whose name is that of one that is understood, still freezes it."""
    net = Net()
    words = net.weight("words", WORDS, 4)
    looked = net.op("Gather", [words, "ids"], "looked")
    shape = net.op("Unsqueeze", ["ids", net.put("axis", np.array([2]))], "wide")
    repeated = net.op("Expand", [shape, net.put("four", np.array([1, 1, 4]))], "repeated")
    flat = net.op("Reshape", [repeated, net.put("flat", np.array([-1, 4]))], "flattened")
    net.op("GatherElements", [words, flat], "elements")
    back = net.op("ReduceSum", ["elements", net.put("axes", np.array([0]))], "sum", keepdims=0)
    net.op("MatMul", [net.op("Add", [looked, back], "both"), net.weight("last", 4, 3)], "out")
    for node in net.nodes:
        node.name = "same"
    vocabulary = vocabulary_of(net.model({"out": (TensorProto.FLOAT, ["N", "T", 3])}))
    assert "run time" in vocabulary.frozen


def test_an_id_goes_everywhere_or_nowhere() -> None:
    vocabulary = vocabulary_of(language(head="own"))
    removed = vocabulary.removed(KEEP)
    assert len(removed) == 2
    assert vocabulary.kept(removed).tolist() == KEEP.tolist()
    name = min(removed)
    with pytest.raises(ValueError, match="in one place"):
        vocabulary.kept({name: removed[name]})
    with pytest.raises(ValueError, match="elements of an axis would go"):
        vocabulary.kept({g.name: np.arange(g.units) for g in vocabulary.groups})
    with pytest.raises(ValueError, match="no group of the vocabulary"):
        vocabulary.kept({"up:1": np.array([0])})


def test_ids_in_a_branch() -> None:
    """A table that both branches of an If look up."""
    net = Net()
    net.weight("words", WORDS, 4)
    branches = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        inner = [
            helper.make_node("Gather", ["words", "ids"], [f"{op}_looked"]),
            helper.make_node(op, [f"{op}_looked"], [f"{op}_out"]),
        ]
        out = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, ["N", "T", 4])
        branches[name] = helper.make_graph(inner, op, [], [out])
    net.nodes.append(helper.make_node("If", ["flag"], ["chosen"], name="if", **branches))
    net.op("MatMul", ["chosen", net.weight("last", 4, 3)], "out")
    model = net.model({"out": (TensorProto.FLOAT, ["N", "T", 3])})
    model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    vocabulary = vocabulary_of(model)
    cut = shortened(vocabulary, KEEP, 0).model
    ids = np.resize(KEEP, (2, 9))
    for flag in (np.array(True), np.array(False)):
        before, after = run(model, ids=ids, flag=flag), run(cut, ids=ids, flag=flag)
        np.testing.assert_array_equal(before["out"], after["out"])
