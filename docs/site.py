"""Hooks of the site (mkdocs.yml): pages beside docs/ join it, and links to other files of the repository lead there.

In a checkout a link is a path in the tree. On the site, pages of `PAGES` are under ``repository/``; what is no page
at all (code, models, folders) is linked where the repository is published.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
#: What joins the site from outside of docs/.
PAGES = (
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "samples").rglob("README.md")),
)
LINK = re.compile(r"(!?\[(?:[^\]\[]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.M | re.S)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie beside docs/."""
    for name in PAGES:
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"repository/{name}", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links of the tree into links of the site."""
    source = page.file.src_uri
    home = source.removeprefix("repository/") if source.startswith("repository/") else f"{DOCS}/{source}"

    def turned(match: re.Match[str]) -> str:
        return match[1] + destination(home, source, match[2], config.repo_url) + match[3]

    parts = CODE.split(markdown)  # what stands in code stays
    return "".join(part if n % 2 else LINK.sub(turned, part) for n, part in enumerate(parts))


def destination(home: str, source: str, link: str, repository: str) -> str:
    """Return where a link leads on the site: `home` is the page's file in the tree, `source` in the site."""
    target, mark, anchor = link.partition("#")
    if not target or "://" in target:
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
    if (ROOT / path).is_dir() and f"{path}/README.md" in PAGES:
        path += "/README.md"
    if path in PAGES:
        inside = f"repository/{path}"
    elif path == "README.md":
        inside = "README.md"
    elif path.startswith(f"{DOCS}/") and (ROOT / path).is_file() and not path.endswith(".py"):
        inside = path.removeprefix(f"{DOCS}/")
    else:
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{repository}/{kind}/main/{path}{mark}{anchor}"
    return posixpath.relpath(inside, posixpath.dirname(source) or ".") + mark + anchor
