"""What samples cost in memory: weights of sessions lie where they are, batches fit, targets leave room for fits."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from small_models import Builder, chain

from onnxprune.calibration import stream as _stream
from onnxprune.calibration.frontier import in_batches, largest
from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.calibration.stream import Stream
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.model import Model
from onnxprune.reconstruction import room
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.layers import sites
from onnxprune.runtime import session as _session

WIDTH = 768


def products() -> tuple[Analysis, Samples]:
    """Two large products."""
    b = Builder()
    y = b.op("MatMul", ["x", b.weight("one", WIDTH, WIDTH)], "first")
    y = b.op("MatMul", [b.op("Relu", [y], "relu"), b.weight("two", WIDTH, WIDTH)], "second")
    model = Model.load(b.model({"x": ["N", WIDTH]}, y))
    for name in ("one", "two"):
        model.put(name, model.weight(name) * 1)  # lies where numbers may begin, as external data does
    x = np.random.default_rng(0).standard_normal((6, WIDTH)).astype(np.float32)
    return analyse(model), Samples([{"x": x}], [6], along={"x": 0})


def allocated(work: Callable[[], object]) -> int:
    """The most bytes of arrays and texts that are made meanwhile."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("stop", [1, 3])
def test_a_part_of_a_large_model_copies_no_weights(stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, samples = products()
    wanted = [["first_out"], ["second_out"]][stop > 1]
    expected = next(Stream(analysis.model, samples, analysis.types).run(stop, wanted))
    opened = []
    real = _stream.open_session

    def watched(model: Model, *more: object, **options: object) -> object:
        opened.append(options)
        return real(model, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_stream, "open_session", watched)
    monkeypatch.setattr(_stream, "HEAVY", 1 << 20)
    stream = Stream(analysis.model, samples, analysis.types)
    assert allocated(lambda: stream.ways) < 1 << 18
    found = {}
    peak = allocated(lambda: found.update(next(stream.run(stop, wanted))))
    assert peak < analysis.model.info("one").nbytes / 2
    assert (
        allocated(analysis.model.to_proto) > analysis.model.info("one").nbytes
    )  # a copy would have been seen
    np.testing.assert_allclose(found[wanted[0]], expected[wanted[0]], rtol=1e-4, atol=1e-4)
    assert opened[-1]["prepack"] is opened[-1]["optimise"] is False
    monkeypatch.setattr(_stream, "HEAVY", 1 << 30)
    next(Stream(analysis.model, samples, analysis.types).run(stop, wanted))
    assert opened[-1]["prepack"] is opened[-1]["optimise"] is True


def test_a_part_reads_weights_that_were_put_or_cut() -> None:
    model = products()[0].model.fork()
    model.take("one", {1: np.arange(0, WIDTH, 2)})
    model.put("two", np.full((WIDTH // 2, 3), 0.25, np.float32))
    graph = model.skeleton().graph
    del graph.initializer[:]
    part = model.part(graph, ["two", "one"])
    assert part.names() == ["two", "one"]
    for name in part.names():
        assert part.info(name).dims == model.info(name).dims
        np.testing.assert_array_equal(part.weight(name), model.weight(name))
    part.put("one", np.zeros(3, np.float32))
    assert model.info("one").dims == (WIDTH, WIDTH // 2)


def images(count: int) -> tuple[Analysis, Samples]:
    proto = chain()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = Model.load(proto)
    analysis = analyse(model)
    shape = analysis.inputs["x"][1:]
    x = np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)
    return analysis, load_samples(model.proto.graph, {"x": x}, types=analysis.inputs)


@pytest.mark.parametrize("share", [2.0, 1.0, 0.5, 0.1, 1e-9])
def test_batches_are_as_large_as_their_activations_allow(share: float) -> None:
    analysis, samples = images(150)
    assert samples.counts == [64, 64, 22]
    nodes = range(len(analysis.coupling.nodes) + 1)
    each = largest(analysis, nodes) / analysis.inputs["x"][0]
    most = 64 * each * share
    fitting = in_batches(analysis, samples, most)
    assert sum(fitting.counts) == 150
    assert max(fitting.counts) == {2.0: 64, 1.0: 64, 0.5: 32, 0.1: 6}.get(share, 1)
    assert all(count == 1 or count * each <= most for count in fitting.counts)
    whole = [np.concatenate([b["x"] for b in one.batches]) for one in (samples, fitting)]
    np.testing.assert_array_equal(*whole)
    assert in_batches(analysis, samples, most).counts == fitting.counts


def test_batches_of_the_models_own_size_stay() -> None:
    analysis, samples = images(64)
    assert in_batches(analysis, Samples(samples.batches, samples.counts), 1.0).counts == [64]


def test_targets_stay_as_far_as_the_largest_fit_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, settings = sites(products()[0]), Settings()
    largest_fit = max(room.needed(site, settings) for site in layers)
    assert room.lasting(layers, settings) == room.LASTING
    assert room.lasting([], settings) == room.LASTING
    monkeypatch.setattr(room, "SHARE", largest_fit + 1000)
    assert room.lasting(layers, settings) == 1000
    monkeypatch.setattr(room, "SHARE", largest_fit / 2)
    assert room.lasting(layers, settings) == 0


@pytest.mark.parametrize("mode", ["exact", "served", "timed"])
def test_an_output_keeps_no_more_than_itself(mode: _session.Mode) -> None:
    """What comes from an arena keeps all of it; only what is timed runs as users run it."""
    options = _session._Config(None, _session.CPU, prepack=True, optimise=True, mode=mode).options()
    assert options.enable_cpu_mem_arena is (mode == "timed")
