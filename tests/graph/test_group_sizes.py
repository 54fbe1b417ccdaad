"""What goes with a whole group, each weight and each product once."""

from __future__ import annotations

from onnxprune.graph.size import count_macs, count_parameters
from onnxprune.pruning.explanation import explain
from onnxprune.pruning.inspection import inspect_analysis
from tests.graph.test_groups import groups, study


def test_a_matrix_between_the_units_of_a_group_counts_once_when_all_of_them_go() -> None:
    analysis = study(
        """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1, b1)
        c = Conv(a, w2, b2)
        d = Add(a, c)
        y = Conv(d, w3)
    }""",
        w1=(6, 3, 1, 1), b1=(6,), w2=(6, 6, 1, 1), b2=(6,), w3=(4, 6, 1, 1),
    )  # fmt: skip
    (group,) = groups(analysis).values()
    assert group.params.sum() == 6 * (3 + 1 + 2 * 6 + 1 + 4)
    assert group.all_params == 6 * (3 + 1 + 6 + 1 + 4)
    assert group.all_macs == 64 * 6 * (3 + 6 + 4) == count_macs(analysis.coupling)
    line = inspect_analysis(analysis).to_json()["groups"][0]
    assert (line["params"], line["macs"]) == (group.all_params, group.all_macs)
    (said,) = explain(analysis, "w2", 0).axes[0].groups
    assert (said["params"], said["macs"]) == (group.all_params, group.all_macs)


def test_a_bias_that_two_layers_of_a_group_share_counts_once() -> None:
    analysis = study(
        """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1, b)
        c = Conv(x, w2, b)
        d = Add(a, c)
        y = Conv(d, w3)
    }""",
        w1=(6, 3, 1, 1), w2=(6, 3, 1, 1), b=(6,), w3=(4, 6, 1, 1),
    )  # fmt: skip
    (group,) = groups(analysis).values()
    assert group.all_params == count_parameters(analysis.model)
