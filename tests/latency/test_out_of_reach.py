"""A latency that even the deepest cut misses is refused before finer steps are tried."""

import numpy as np
import pytest

from latency.test_latency import Fake
from onnxprune.errors import NothingToPrune
from onnxprune.options.target import Target
from onnxprune.pruning.approach import until_met


def test_a_target_that_the_deepest_cut_misses_is_refused_before_finer_steps() -> None:
    tried: list[int] = []

    def choose(step: int, factor: float) -> dict[str, np.ndarray]:
        tried.append(step)
        return {"g": np.arange(max(round(100 * (1 - 0.5 * factor)), 1))}

    target = Target("latency", 0.5, True, "latency=0.5")
    with pytest.raises(NothingToPrune, match=r"latency=0\.5 can't be met: .* 67% of the input's time"):
        until_met(Fake(lambda gone: 1.5), target, choose, [16, 4, 1], lambda step: {"g": np.arange(900)})  # type: ignore[arg-type]
    assert set(tried) == {16}
    judge = Fake(lambda gone: 1 / (1 - gone / 1000))
    with pytest.raises(NothingToPrune, match="wasn't met"):
        until_met(judge, target, choose, [16, 4], lambda step: {"g": np.arange(900)})  # type: ignore[arg-type]
    assert set(tried) == {16, 4}, "the deepest is fast enough, so finer steps are tried"
