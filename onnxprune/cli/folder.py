"""A folder with several models, such as an encoder and its decoders: one run, a report for each."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.files.target import STDOUT
from onnxprune.journey.trees import several_in
from onnxprune.options.pruning import Options
from onnxprune.pruning.family import member_path
from onnxprune.pruning.journey import Result

__all__ = ["pruned"]


def pruned(
    args: Namespace,
    options: Options,
    places: Callable[..., AbstractContextManager[None]],
    told: Callable[..., Any],
) -> bool:
    """Prune a folder with several models into another one; False where IN and OUT aren't these."""
    source = getattr(args, "in")
    models = several_in(source, Path(args.out))
    if not models:
        return False
    files = {"--report": args.report, "--plan": args.plan}
    if STDOUT in files.values():
        raise UsageError("Several models can't share standard output; give a file, whose name gets theirs.")
    writes = {
        f"{what} of {name}": str(_of(path, name)) for what, path in files.items() if path for name in models
    }

    def keep(name: str, result: Result) -> None:
        result.report.command = args.line
        if args.report:
            result.report.save(_of(args.report, name))
        if args.plan:
            result.plan.save(_of(args.plan, name))

    with places(args, source, None, writes, joined=False):
        results: dict[str, Result] = told(args, api.prune_folder, source, args.out, options, each=keep)
    if args.json:
        print(json.dumps({name: result.report.to_json() for name, result in results.items()}, indent=1))
    elif not args.quiet:
        for name, result in results.items():
            print(f"{name}:")
            result.report.show()
            print(f"wrote {result.path}")
    return True


def _of(path: str, name: str) -> Path:
    return member_path(path, name.removesuffix(".onnx").replace("/", "-"))
