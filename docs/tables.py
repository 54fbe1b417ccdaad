"""Write docs/ops.md and docs/options.md from the code: ``python docs/tables.py``. A test compares them with
it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def ops() -> str:
    """Return docs/ops.md."""
    from onnxprune.ops import traits_of
    from onnxprune.pruning.inspection import op_table

    table = op_table()
    count = Counter(kind for _, kind, _ in table)
    known = [line for line in table if line[1] in ("row", "dynamic")]
    lines = [
        "# Ops",
        "",
        "Written by `python docs/tables.py` from the op table; don't edit. The notation is explained in",
        "`onnxprune/ops/notation.py`. An op that isn't in the table freezes every axis that it touches.",
        "",
        f"{len(known)} ops have a row: {count['row']} always the same, {count['dynamic']} one that depends "
        "on the node.",
        "",
        "Traits are explained in `onnxprune/ops/traits.py`.",
        "",
        "| op | row | traits |",
        "|---|---|---|",
    ]
    for op, kind, text in known:
        cell = text.replace("|", "\\|")
        domain, _, name = op.rpartition("::")
        traits = ", ".join(traits_of(name, domain).names)
        lines.append(f"| {op} | {'`' + cell + '`' if kind == 'row' else cell} | {traits} |")
    without = [f"{op} ({text})" if text else op for op, kind, text in table if kind not in ("row", "dynamic")]
    lines += ["", f"Without a row, and so frozen ({len(without)}): {', '.join(without)}.", ""]
    return "\n".join(lines)


def options() -> str:
    """Return docs/options.md."""
    from onnxprune.options.calibration import CalibrateOptions
    from onnxprune.options.compression import CompressOptions
    from onnxprune.options.fleet import FleetOptions
    from onnxprune.options.pruning import Options
    from onnxprune.options.sparsity import SparseOptions
    from onnxprune.options.tuning import TuneOptions

    lines = ["# Options", "", "Written by `python docs/tables.py` from the code; don't edit.", ""]
    lines += ["`onnxprune prune`, and `onnxprune.Options`:", "", *_option_rows(Options), ""]
    lines += ["`onnxprune sparsify`:", "", *_option_rows(SparseOptions), ""]
    lines += ["`onnxprune compress`:", "", *_option_rows(CompressOptions), ""]
    lines += ["`onnxprune tune`:", "", *_option_rows(TuneOptions), ""]
    lines += ["`onnxprune calibrate`:", "", *_option_rows(CalibrateOptions), ""]
    lines += ["`onnxprune fleet`:", "", *_option_rows(FleetOptions), ""]
    return "\n".join(lines)


def _option_rows(kind: Any) -> list[str]:
    from onnxprune.options.declare import flag, help_of, specs

    lines = ["| command line | Python | default | unit | |", "|---|---|---|---|---|"]
    for spec in specs(kind):
        if getattr(kind, "COMMAND", "fleet") not in spec.metadata["commands"]:
            continue
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        factory = spec.default_factory is not dataclasses.MISSING
        default = "required" if required else "`{}`" if factory else f"`{spec.default!r}`"
        cells = [
            f"`{flag(spec)}`",
            f"`{spec.name}`",
            default,
            spec.metadata["unit"],
            help_of(spec, getattr(kind, "COMMAND", "fleet")),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def cli() -> str:
    """Return docs/cli.md."""
    from onnxprune.cli.arguments import build

    lines = ["# The command line", "", "Written by `python docs/tables.py` from the parsers; don't edit."]
    lines += ["`onnxprune help COMMAND` shows the same, and examples.", ""]
    for name, parser in build().commands.items():
        actions = [a for a in parser._actions if a.dest != "help"]
        given = [a for a in actions if not a.option_strings]
        usage = " ".join(
            ["onnxprune", name, *map(_place, given), *(["[options]"] if len(actions) > len(given) else [])]
        )
        lines += [f"## {name}", "", str(parser.description), "", "```text", usage, "```", ""]
        lines += ["| | |", "|---|---|", *map(_line, actions), ""] if actions else []
    return "\n".join(lines)


def _place(action: Any) -> str:
    name = str(action.metavar)
    return {"?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _line(action: Any) -> str:
    value = f" {action.metavar}" if action.option_strings and action.metavar else ""
    name = ", ".join(f"`{flag}{value}`" for flag in action.option_strings) or f"`{action.metavar}`"
    text = str(action.help) % {**vars(action), "prog": "onnxprune"}
    needed = ", required" if action.option_strings and action.required else ""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (name + needed, text)) + " |"


FILES = {"cli.md": cli, "ops.md": ops, "options.md": options}


def main() -> None:
    """Write the files."""
    for name, make in FILES.items():
        (HERE / name).write_text(make(), encoding="utf-8", newline="\n")
        print(f"wrote docs/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
