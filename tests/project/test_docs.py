"""The blocks of the docs run, or say why they don't; links lead somewhere; what is drawn is drawn from what there is.

A page's blocks run one after the other in one folder, with the files that its comment ``<!-- given: ... -->`` names. A
block whose first line is ``# FILE`` is that file. What can't run says so in a comment before it:
``<!-- not run: REASON -->``.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from project.given_files import ROOT, furnish

DOCS = ROOT / "docs"
#: Run by default: what a newcomer copies first. The others are for ``-m long``.
QUICK = {"docs/tutorial.md", "docs/python.md"}
RUN = {"bash", "python", "py"}
SHOWN = {"text", "json", "toml", "yaml"}
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    why: str | None

    @property
    def file(self) -> str | None:
        matched = re.match(r"# ([\w.-]+\.(?:py|toml|json|ya?ml|txt))\n", self.code)
        return matched and matched.group(1)


def pages() -> dict[str, str]:
    """Return path -> text of the pages of the project."""
    paths = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "samples").rglob("*.md")]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in sorted(paths)}


PAGES = pages()
DOCUMENTED = [name for name in PAGES if name == "README.md" or name.startswith("docs/")]
DOCUMENTED = [name for name in DOCUMENTED if not name.startswith("docs/decisions/")]


def blocks(text: str) -> list[Block]:
    return [Block(m["language"], m["code"], m["why"]) for m in FENCE.finditer(text)]


def runnable(name: str) -> list[Block]:
    return [b for b in blocks(PAGES[name]) if b.why is None and (b.language in RUN or b.file)]


def run_page(name: str, folder: Path) -> None:
    text = PAGES[name]
    given = re.search(r"<!-- given: ([^>]+) -->", text)
    furnish(folder, given.group(1) if given else "")
    env = {
        **os.environ,
        "PATH": f"{folder / '.bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    env["ONNXPRUNE_CACHE"] = str(folder / ".cache")
    for number, block in enumerate(runnable(name)):
        if block.file:
            (folder / block.file).write_text(block.code, encoding="utf-8")
            continue
        if block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.code]
        else:
            (folder / f"block{number}.py").write_text(block.code, encoding="utf-8")
            command = [sys.executable, f"block{number}.py"]
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == 0, f"{name}:\n{block.code}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.skipif(
    shutil.which("bash") is None or os.name == "nt", reason="the blocks are for a POSIX shell"
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.long)
        for name in DOCUMENTED
        if runnable(name)
    ],
)
def test_the_blocks_of_a_page_run(name: str, tmp_path: Path) -> None:
    run_page(name, tmp_path)


def test_a_block_that_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAGES, "bad.md", "```python\nraise SystemExit(3)\n```\n")
    with pytest.raises(AssertionError, match="SystemExit"):
        run_page("bad.md", tmp_path)


def test_every_block_has_a_language_that_is_known() -> None:
    seen = [(name, b.language) for name in DOCUMENTED for b in blocks(PAGES[name])]
    assert len(seen) > 40
    assert [one for one in seen if one[1] not in RUN | SHOWN] == []


def test_no_command_hides_in_an_indented_block() -> None:
    """Those of the README's two commands and its first line are tested by themselves."""
    hidden = [
        (name, line)
        for name in DOCUMENTED
        for line in PAGES[name].splitlines()
        if line.startswith("    onnxprune ") and name not in ("README.md", "docs/commands.md")
    ]
    assert hidden == []


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs write them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles]
    return {re.sub(r"-+", "-", one) for one in plain} | set(plain)


def broken(name: str, text: str) -> list[str]:
    """Return the links of a page that lead nowhere in the tree; the web isn't asked."""
    bad = []
    for link in LINK.findall(re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.M | re.S)):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists() or (
            anchor and path.suffix == ".md" and anchor not in anchors(path.read_text(encoding="utf-8"))
        ):
            bad.append(link)
    return bad


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    assert broken(name, PAGES[name]) == []


def test_a_broken_link_is_seen() -> None:
    text = "[a](README.md) [b](nowhere.md) [c](README.md#no-such-heading) [d](#here)\n# Here\n"
    assert broken("x.md", text) == ["nowhere.md", "README.md#no-such-heading", "#here"]


def test_every_page_is_reached_from_the_list_of_pages() -> None:
    listed = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall(PAGES["docs/README.md"])}
    missing = [name for name in PAGES if name.startswith("docs/") and (ROOT / name).resolve() not in listed]
    assert [name for name in missing if name != "docs/README.md"] == []


def test_the_picture_is_that_of_a_run() -> None:
    """Drawn by ``python docs/picture.py``."""
    spec = importlib.util.spec_from_file_location("picture", DOCS / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    drawn = picture.drawn(*picture.measured())
    assert (DOCS / "picture.svg").read_text(encoding="utf-8") == drawn
    assert len(drawn) < 10_000
