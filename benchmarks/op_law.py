"""Law 2, cutting commutes with the op, over all node models that come with the onnx package.

    python benchmarks/op_law.py [--only REGEX] [--seed N] [--verbose]

Twice. First each row by itself: every node of every model (a function's expansion has up to 127) is checked once
for each set of shapes, types and attributes. Prints a line for each op type: distinct nodes, cuts compared,
violations. Then whole models through coupling, solver, twin and rewriter, with all of their inputs and outputs open.
At last the round trip: ``--ratio 0`` gives every model back byte by byte.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from onnxprune import prune
from onnxprune.ops import TABLE, Refusal, lookup
from onnxprune.testing.node import node_of, run_node
from onnxprune.testing.op_law import Verdict, check_op

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One node with its inputs."""

    model: str
    proto: NodeProto
    inputs: tuple[Array | None, ...]
    opsets: Mapping[str, int]


def key(case: Case) -> tuple[Any, ...]:
    """Say what is the same node again: values of small integer inputs (axes, indices) count, others don't."""
    proto = case.proto
    inputs = tuple(
        None
        if a is None
        else (a.shape, str(a.dtype), a.tobytes() if a.dtype.kind in "iub" and a.size <= 64 else b"")
        for a in case.inputs
    )
    attrs = tuple(sorted(a.SerializeToString() for a in proto.attribute))
    return (
        proto.op_type,
        proto.domain,
        case.opsets.get(proto.domain, 1),
        attrs,
        inputs,
        tuple(map(bool, proto.output)),
    )


def constants(graph: onnx.GraphProto) -> dict[str, Any]:
    """Return what is known of a graph's weights."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def tensors(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Run a model and return every tensor of its main graph."""
    from onnx.reference import ReferenceEvaluator

    whole = onnx.ModelProto.FromString(model.SerializeToString())
    have = {output.name for output in whole.graph.output}
    names = [name for node in whole.graph.node for name in node.output if name and name not in have]
    whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = ReferenceEvaluator(whole).run(None, dict(feeds))
    return dict(zip([output.name for output in whole.graph.output], results, strict=True)) | dict(feeds)


def cases(only: str = "") -> Iterator[Case]:
    """Yield the nodes of onnx's node models. A model of several nodes that can't be run yields none."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        model = case.model
        if only and not re.search(only, case.name):
            continue
        feeds = {
            value.name: array for value, array in zip(model.graph.input, case.data_sets[0][0], strict=False)
        }
        opsets = {o.domain: o.version for o in model.opset_import}
        values: dict[str, Any] = {**constants(model.graph), **feeds}
        if len(model.graph.node) > 1:
            try:
                values = tensors(model, values)
            except Exception:
                continue
        for node in model.graph.node:
            inputs = tuple(values.get(name) if name else None for name in node.input)
            pairs = zip(node.input, inputs, strict=True)
            if all(not name or isinstance(a, np.ndarray | np.generic) for name, a in pairs):
                arrays = tuple(None if a is None else np.asarray(a) for a in inputs)
                yield Case(case.name, node, arrays, opsets)


def run_time_row(case: Case, verdict: Verdict) -> bool:
    """Whether the row is another one when the node's inputs are not known before the model runs."""
    if not verdict.row or all(a is None or a.dtype.kind == "f" for a in case.inputs):
        return False
    try:
        results = iter(run_node(case.proto, case.inputs, case.opsets))
    except Exception:
        return False
    outputs = [next(results) if name else None for name in case.proto.output]
    node = node_of(case.proto, case.inputs, outputs, case.opsets.get(case.proto.domain, 1), known=False)
    row = lookup(node)
    return not isinstance(row, Refusal) and row.text != verdict.row


def check(found: Sequence[Case] | Iterator[Case], seed: int = 0) -> list[tuple[Case, Verdict]]:
    """Check each distinct node once, and once more as if nothing were known at rest where that gives another row."""
    seen: set[tuple[Any, ...]] = set()
    verdicts = []
    for case in found:
        if key(case) in seen:
            continue
        seen.add(key(case))
        rng = np.random.default_rng(seed)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            verdict = check_op(case.proto, case.inputs, case.opsets, rng=rng)
            verdicts.append((case, verdict))
            if run_time_row(case, verdict):
                verdicts.append((case, check_op(case.proto, case.inputs, case.opsets, rng=rng, known=False)))
    return verdicts


def report(verdicts: list[tuple[Case, Verdict]], seconds: float, verbose: bool) -> int:
    """Print the table and return the number of violations."""
    lines: defaultdict[str, Counter[str]] = defaultdict(Counter)
    reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for case, verdict in verdicts:
        line = lines[verdict.op]
        line["nodes"] += 1
        line["cuts"] += verdict.cuts
        line["violations"] += len(verdict.violations)
        line["rows"] += bool(verdict.row)
        if verdict.reason:
            reasons[verdict.op][verdict.reason] += 1
        for wrong in verdict.violations:
            print(f"VIOLATION {case.model}: {verdict.op}: {wrong}")
    print(f"{'op':<44}{'nodes':>7}{'rows':>7}{'cuts':>8}{'violations':>12}")
    for name, line in sorted(lines.items()):
        print(f"{name:<44}{line['nodes']:>7}{line['rows']:>7}{line['cuts']:>8}{line['violations']:>12}")
        if verbose:
            for reason, count in reasons[name].most_common():
                print(f"    {count} x {reason}")
    total = sum((line for line in lines.values()), Counter())
    with_row = [name for name, line in lines.items() if line["rows"]]
    without = sorted(name for name, line in lines.items() if not line["rows"])
    print(
        f"{len(with_row)} op types with a row, {len(TABLE)} in the table; without: {', '.join(without) or 'none'}"
    )
    print(f"{total['nodes']} nodes, {total['cuts']} cuts, {total['violations']} violations, {seconds:.0f} s")
    return total["violations"]


def engine(only: str, seed: int) -> int:
    """Check the models through the whole engine, print what was found, and return the number of violations."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from ops.node_models import node_models, survey

    models = [case for case in node_models() if not only or re.search(only, case.name)]
    start = time.perf_counter()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = survey(models, cuts=8, seed=seed)
    total = found.total
    for violation in found.violations:
        print(f"VIOLATION {violation}")
    print(f"\nThrough the engine: {found.models} models, {found.cut} cut, {found.locked} with nothing to cut, "
          f"{found.without_row} without a row, {len(found.skipped)} skipped")  # fmt: skip
    for why, count in Counter(found.skipped.values()).most_common():
        print(f"    skipped {count} x {why[:140]}")
    print(f"{len(total.rows)} op types with a row: {len(total.exercised)} went through a compared cut; "
          f"nothing to cut in: {names(total.rows - total.exercised)}")  # fmt: skip
    print(f"op types without a row: {names(set(total.refused) - total.rows)}")
    print(f"{total.cuts} cuts ({total.reference} by onnx's reference evaluator), {len(found.violations)} violations, "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    print(f"round trip: {round_trip(case.model for case in models)} of {len(models)} models byte by byte")
    return len(found.violations)


def names(ops: Iterable[tuple[str, str]]) -> str:
    return ", ".join(sorted(f"{domain}::{name}" if domain else name for domain, name in ops)) or "none"


def round_trip(models: Iterable[onnx.ModelProto]) -> int:
    """Return how many models come back byte by byte from ``--ratio 0``."""
    same = 0
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        for model in models:
            source.write_bytes(model.SerializeToString(deterministic=True))
            prune(source, target, ratio=0)
            same += source.read_bytes() == target.read_bytes()
            target.unlink()
    return same


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="names of onnx's test cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print the reasons of refusals")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    verdicts = check(cases(options.only), options.seed)
    wrong = report(verdicts, time.perf_counter() - start, options.verbose)
    return int(wrong + engine(options.only, options.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
