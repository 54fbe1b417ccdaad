"""The site builds without a warning, and each of its links leads to a page and a place that are there."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            if value and name in ("id", "name"):
                self.anchors.add(value)


def broken(site: Path) -> list[str]:
    """Return the links within a site that lead nowhere, each with its page."""
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html") if p.name != "404.html"}
    bad = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            lost = target in pages and parts.fragment and unquote(parts.fragment) not in pages[target].anchors
            if not target.exists() or (lost and not parts.fragment.startswith("__")):
                bad.append(f"{path.relative_to(site)}: {link}")
    return bad


@pytest.mark.long
def test_the_site_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert broken(tmp_path / "site") == []
    text = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert {"onnxprune.api.prune", "onnxprune.api.tune"} <= set(re.findall(r'<h[34] id="([\w.]+)"', text))
    asked = {
        urlsplit(link).netloc
        for p in (tmp_path / "site").rglob("*.html")
        for link in re.findall(
            r'<(?:script|link rel="stylesheet"|img)[^>]*(?:src|href)="(https?://[^"]+)"', p.read_text()
        )
    }
    assert asked == set()  # nothing is loaded from another server


def test_a_link_of_the_site_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a><a href="b.html#y">b</a><a href="c.html">c</a>')
    (tmp_path / "b.html").write_text('<p id="x"></p>')
    assert broken(tmp_path) == ["a.html: b.html#y", "a.html: c.html"]
