"""The configuration of onnxruntime-genai beside a model, brought up to what a cut left of its heads and widths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from onnxprune.files.commit import write_text
from onnxprune.files.target import same
from onnxprune.model import Model
from onnxprune.runtime.binding import declared

__all__ = ["NAME", "write_config"]

NAME = "genai_config.json"
#: Bytes of a file beyond which it is no configuration.
MOST_BYTES = 1 << 20


def write_config(before: Model, after: Model, output: Path) -> str:
    """Write the configuration of a result into its folder, if the input's folder has one that names the input.

    Nothing is written into the input's own folder, nor over a configuration of another model.

    Parameters
    ----------
    before, after : Model
    output : Path
        Of the result.

    Returns
    -------
    str
        What was done, in a sentence; empty where there is no configuration.
    """
    source = before.path
    values = None if source is None else _read(source.parent / NAME)
    if source is None or values is None or _decoder(values).get("filename") != source.name:
        return ""
    target = output.parent / NAME
    if same(source.parent, output.parent):
        return ""
    if target.exists() and _decoder(_read(target) or {}).get("filename") != output.name:
        return f"{str(target)!r} is of another model and stays; that of the input names sizes from before the cut"
    decoder = _decoder(values)
    try:
        new = _sizes(decoder, before, after)
    except _Uneven as error:
        return f"{NAME} wasn't written: {error}, which it can't say"
    changes = [f"{key} {decoder[key]} -> {size}" for key, size in new.items() if decoder[key] != size]
    decoder |= {**new, "filename": output.name}
    write_text(target, json.dumps(values, indent=4, ensure_ascii=False) + "\n")
    return f"{str(target)!r} was written for the result" + (f": {', '.join(changes)}" if changes else "")


class _Uneven(Exception):
    """A size isn't the same in all layers."""


def _read(path: Path) -> dict[str, Any] | None:
    """Return a configuration; None where there is none that can be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return None
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _decoder(values: dict[str, Any]) -> dict[str, Any]:
    model = values.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    return decoder if isinstance(decoder, dict) else {}


def _sizes(decoder: dict[str, Any], before: Model, after: Model) -> dict[str, int]:
    """Return the sizes that a configuration has and the result says, by key."""
    graph = after.proto.graph
    inputs = {v.name: declared(v) or () for v in graph.input}
    caches = [axes for name, axes in inputs.items() if _is_cache(decoder, name, len(axes))]
    for value in before.proto.graph.input:  # it numbers layers without gaps
        if value.name not in inputs and _is_cache(decoder, value.name, len(declared(value) or ())):
            raise _Uneven(f"{value.name!r} went with its layer")
    heads = [
        int(a.i) for node in graph.node for a in node.attribute
        if a.name == "num_heads" and node.op_type in ("GroupQueryAttention", "MultiHeadAttention")
    ]  # fmt: skip
    read: dict[str, list[int | str] | list[int]] = {
        "num_key_value_heads": [axes[1] for axes in caches],
        "head_size": [axes[3] for axes in caches],
        "num_attention_heads": heads,
        "hidden_size": _widths(decoder.get("hidden_size"), before, after),
    }
    new: dict[str, int] = {}
    for key, sizes in read.items():
        known = sorted({size for size in sizes if isinstance(size, int)})
        if len(known) > 1:
            raise _Uneven(f"{key} is {' or '.join(map(str, known))}, by layer")
        if known and isinstance(decoder.get(key), int):
            new[key] = known[0]
    return new


def _is_cache(decoder: dict[str, Any], name: str, rank: int) -> bool:
    """Whether an input is a cache of keys or values, by the names that the configuration has for them."""
    inputs = decoder.get("inputs")
    names = inputs if isinstance(inputs, dict) else {}
    ends = [str(names.get(f"past_{what}_names", "")).partition("%d") for what in ("key", "value")]
    return rank == 4 and any(
        mark and name.startswith(first) and name.endswith(last) for first, mark, last in ends
    )


def _widths(width: Any, before: Model, after: Model) -> list[int]:
    """Return what is left of a width in tables that words are looked up in."""
    tables = {
        node.input[0] for node in before.proto.graph.node
        if node.op_type == "Gather" and node.input[0] in before and node.input[0] in after
    }  # fmt: skip
    shapes = [(before.info(name).dims, after.info(name).dims) for name in sorted(tables)]
    return [new[-1] for old, new in shapes if len(old) == 2 and old[-1] == width]
