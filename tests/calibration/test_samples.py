"""Samples in every form, and what is wrong with them in clear words."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.errors import CalibrationError

ROWS = np.arange(10 * 3 * 2, dtype=np.float32).reshape(10, 3, 2)


def graph(*shape: object, kind: int = TensorProto.FLOAT) -> onnx.GraphProto:
    given = helper.make_tensor_value_info("x", kind, list(shape))
    out = helper.make_tensor_value_info("y", kind, None)
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [out])


FREE = graph("N", 3, 2)


def values(samples):
    return np.concatenate([b["x"] for b in samples.batches])


def forms(folder):
    np.savez(folder / "a.npz", x=ROWS)
    yield str(folder / "a.npz")
    np.save(folder / "a.npy", ROWS)
    yield folder / "a.npy"
    arrays = folder / "arrays"
    arrays.mkdir()
    np.save(arrays / "x.npy", ROWS)
    yield arrays
    sets = folder / "sets"
    for i, part in enumerate(np.split(ROWS, 5)):
        (sets / f"test_data_set_{i}").mkdir(parents=True)
        (sets / f"test_data_set_{i}" / "input_0.pb").write_bytes(
            numpy_helper.from_array(part).SerializeToString()
        )
    yield sets
    script = folder / "script.py"
    script.write_text(
        "import numpy as np\ndef load_data():\n return [{'x': a} for a in np.load(r'%s')['x'][:, None]]\n"
        % (folder / "a.npz")
    )
    yield f"{script}:load_data"
    yield {"x": ROWS}
    yield ({"x": r[None]} for r in ROWS)

    class Reader:
        def __init__(self):
            self.rest = list(ROWS[:, None])

        def get_next(self):
            return {"x": self.rest.pop(0)} if self.rest else None

    yield Reader()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_what_is_set_aside_is_spread_over_all_samples(share):
    """A batch is cut in two where the model leaves its size free, and no sample is lost or given twice."""
    first, rest = load_samples(FREE, {"x": ROWS}).split(share)
    assert rest.count == round(share * len(ROWS))
    both = np.concatenate([values(first), values(rest)])
    assert np.array_equal(both[np.argsort(both[:, 0, 0])], ROWS)
    assert np.array_equal(values(rest), ROWS[{0.1: [5], 0.3: [1, 5, 8], 0.5: [1, 3, 5, 7, 9]}[share]])


def test_of_samples_in_order_of_their_classes_each_class_is_set_aside():
    """Sorted sets are frequent; the last of one would be a class that no fit sees, and the only one that is judged."""
    x = np.zeros((40, *ROWS.shape[1:]), np.float32)
    for model in (FREE, graph(2, 3, 2)):
        samples = load_samples(model, {"x": x, "y": np.repeat(np.arange(4), 10)}, labels="y")
        for fit, aside in (samples.split(0.2), samples.few(24).split(0.34)):
            assert set(fit.labels) == set(aside.labels) == {0, 1, 2, 3}


@pytest.mark.parametrize(("counts", "aside"), [([4, 1], [1]), ([1, 4], None), ([2, 2, 2, 2], [2])])
def test_whole_batches_are_set_aside_where_they_cannot_be_cut(counts, aside):
    samples = Samples([{"x": np.zeros((n, 2), np.float32)} for n in counts], counts)
    first, rest = samples.split(0.25)
    assert (None if rest is None else rest.counts) == aside
    assert sum(first.counts) + sum(aside or ()) == sum(counts)


def test_every_form_gives_the_same_samples(tmp_path):
    seen = 0
    for given in forms(tmp_path):
        samples = load_samples(FREE, given)
        np.testing.assert_array_equal(values(samples), ROWS)
        assert samples.count == 10
        seen += 1
    assert seen == 8


def test_samples_are_cut_to_the_models_batch():
    assert load_samples(graph(2, 3, 2), {"x": ROWS}).counts == [2] * 5
    one = load_samples(graph(1, 3, 2), {"x": ROWS})
    assert one.counts == [1] * 10
    stacked = load_samples(graph(1, 3, 2), {"x": ROWS[:, None]})
    np.testing.assert_array_equal(values(stacked), ROWS)


def test_a_part_is_chosen_by_the_seed_and_labels_follow():
    labels = np.arange(10)
    given = {"x": ROWS, "truth": labels}
    one = load_samples(FREE, dict(given), most=4, seed=3, labels="truth")
    two = load_samples(FREE, dict(given), most=4, seed=3, labels="truth")
    assert one.count == 4
    np.testing.assert_array_equal(values(one), values(two))
    np.testing.assert_array_equal(values(one)[:, 0, 0], one.labels * 6)
    first, rest = load_samples(graph(1, 3, 2), dict(given), labels="truth").split(0.2)
    assert (first.count, rest.count) == (8, 2)
    np.testing.assert_array_equal(values(rest)[:, 0, 0], rest.labels * 6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"z": ROWS}, "lack 'x'"),
        ({"x": ROWS, "z": ROWS}, "'z', which is no input"),
        ({"x": ROWS.astype(np.float64)}, "float64, but the model's input is float32"),
        ({"x": ROWS[:, :2]}, r"shape \(10, 2, 2\)"),
        ({"x": ROWS[0, 0]}, "1 axes"),
        ([], "no calibration samples"),
        ([3], "got a int"),
        (3, "can't be read from a int"),
        ("nothing.npz", "can't be read as samples: there is no such file; give"),
        ("nothing.py:load", "no script"),
    ],
)
def test_what_does_not_fit_is_said(given, text):
    with pytest.raises(CalibrationError, match=text):
        load_samples(FREE, given)


def test_missing_labels_are_said():
    with pytest.raises(CalibrationError, match="no array 'truth'"):
        load_samples(FREE, {"x": ROWS}, labels="truth")


def test_synthetic_samples_look_like_the_input_and_repeat():
    image = graph("N", 3, 16, 16)
    shapes = {"x": (2, 3, 16, 16)}
    one, two = (load_samples(image, "synthetic", most=8, seed=1, types=shapes) for _ in range(2))
    np.testing.assert_array_equal(values(one), values(two))
    assert values(one).shape == (8, 3, 16, 16)
    assert abs(values(one).mean()) < 1e-3
    assert abs(values(one).std() - 1) < 1e-3
    near = np.corrcoef(values(one)[..., :-1].ravel(), values(one)[..., 1:].ravel())[0, 1]
    assert near > 0.7  # neighbours agree, as in pictures
    ids = load_samples(graph("N", 5, kind=TensorProto.INT64), "synthetic", most=4, types={"x": (1, 5)})
    assert values(ids).dtype == np.int64
