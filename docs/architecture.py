"""Draw the rooms of the package into ARCHITECTURE.md: ``python docs/architecture.py``. A test holds the two together.

The ranks are those that `tests/project/test_layers.py` enforces. What a room is for is the first sentence of its
docstring, and what it builds on is read from the imports.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import networkx as nx

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- drawn by docs/architecture.py -->\n", "<!-- end -->\n"
#: The room of a rank -> what the ranks from there down are.
PARTS = {"cli": "interface", "fleet": "capabilities", "journey": "services", "model": "foundations"}
WIDTH, MARGIN = 96, 15


def layers() -> object:
    """Return the layer test, which knows ranks, modules and imports."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.insert(0, str(ROOT / "tests"))
    from project import test_layers

    return test_layers


def arrows() -> nx.DiGraph:
    """Return room -> room that it imports from, less what follows from others."""
    known = layers()
    files = known.sources()
    graph = nx.DiGraph()
    for name, source in files.items():
        inside = any(other.startswith(name + ".") for other in files)
        for target in known.imports(source, name, files, inside):
            ends = known.room(name), known.room(target)
            if all(end in known.RANK for end in ends) and known.RANK[ends[0]] > known.RANK[ends[1]]:
                graph.add_edge(*ends)
    return nx.transitive_reduction(graph)


def purpose(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    known = layers()
    tree = ast.parse(known.modules()[f"onnxprune.{room}"].read_text(encoding="utf-8"))
    text = " ".join((ast.get_docstring(tree) or "").split())
    return text.partition(". ")[0].rstrip(".")


def picture() -> str:
    """Return the ranks as rows of boxes, the highest on top."""
    lines = []
    for rank in reversed(layers().RANKS):
        rooms = rank.split()
        part = next((PARTS[room] for room in rooms if room in PARTS), "")
        if part and lines:
            lines.append("-" * WIDTH)
        for left, fill, right in (("┌", "─", "┐"), ("│", "", "│"), ("└", "─", "┘")):
            boxes = [left + (fill * (len(room) + 2) if fill else f" {room} ") + right for room in rooms]
            label = "" if fill else part
            lines.append((label.ljust(MARGIN) + "  ".join(boxes).center(WIDTH - MARGIN)).rstrip())
    return "\n".join(lines)


def table() -> str:
    """Return what each room is for and what it builds on."""
    graph = arrows()
    lines = ["| room | what it is | builds on |", "|---|---|---|"]
    for rank in reversed(layers().RANKS):
        for room in rank.split():
            below = sorted(graph.successors(room)) if room in graph else []
            lines.append(f"| `{room}` | {purpose(room)} | {', '.join(below)} |")
    return "\n".join(lines)


def drawn(text: str) -> str:
    """Return a page with what stands between the marks drawn anew."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n```text\n{picture()}\n```\n\n{table()}\n\n{END}{after}"


def main() -> None:
    """Draw the page anew."""
    PAGE.write_text(drawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    print(f"drew {PAGE.name}", file=sys.stderr)


if __name__ == "__main__":
    main()
