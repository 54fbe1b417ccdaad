"""A hook for pre-commit: the plans that are committed can be read.

``python -m onnxprune.integrations.plans A.plan.json ...`` prints a sentence for each that can't, and ends with the exit
code of a bad plan.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from onnxprune.errors import PlanError
from onnxprune.pruning.plan import Plan

__all__ = ["main"]


def main(paths: Sequence[str] | None = None) -> int:
    """Look at plans.

    Parameters
    ----------
    paths : sequence of str, optional
        Those of the command line by default.

    Returns
    -------
    int
        0, or the exit code of `PlanError`.
    """
    code = 0
    for path in sys.argv[1:] if paths is None else paths:
        try:
            Plan.load(path)
        except PlanError as error:
            print(error, file=sys.stderr)
            code = error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main())
