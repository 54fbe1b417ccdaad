"""Where one layer reads a group, the units that one at a time would leave are exchanged for better ones."""

import numpy as np
from nets import build, node

from onnxprune.calibration.samples import load_samples
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.pruning.saliency import criterion_of
from onnxprune.reconstruction.sequential import Calibration


def sums() -> Model:
    """Units a, b and a noisy a + b, twice; the next layer wants both sums, and has them from the parts."""
    up = np.zeros((6, 6), np.float32)
    for first in (0, 3):  # inputs a, b, noise -> units a, b, a + b + 0.3 noise
        up[first : first + 3, first : first + 3] = [[1, 0, 1], [0, 1, 1], [0, 0, 0.3]]
    down = np.zeros((6, 2), np.float32)
    down[[0, 1], 0] = down[[3, 4], 1] = 1
    nodes = [node("MatMul", "x up", "h"), node("Relu", "h", "r"), node("MatMul", "r down", "y")]
    return Model.load(build(nodes, {"up": up, "down": down}, (2, 6)))


def test_two_sums_are_kept_rather_than_two_parts() -> None:
    """One by one the sums go first, since the parts explain all; but the best two of the units are the sums."""
    model = sums()
    analysis = analyse(model)
    x = np.random.default_rng(0).uniform(0.5, 1.5, (400, 6)).astype(np.float32)
    samples = load_samples(model.proto.graph, {"x": x})
    after = {}
    for criterion in ("obs", "wanda"):
        calibration = Calibration(
            analysis, samples, analysis.grouping.groups, criterion_of(criterion).measure
        )
        calibration.measure_curves()
        ((name, curve),) = calibration.curves.items()
        assert set(curve.order[:2].tolist()) == {2, 5}
        fitted = calibration.fit({name: np.arange(4)})
        kept = sorted(set(range(6)) - set(fitted.removed[name].tolist()))
        assert (kept == [2, 5]) == (criterion == "obs"), (
            "exchanges are for obs, whose curve promises the best"
        )
        after[criterion] = fitted.layers[0].after
    assert after["obs"] < 0.3 * after["wanda"]
