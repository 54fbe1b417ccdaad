"""What setuptools does not read in pyproject.toml: the README for an index page, where links of a tree lead nowhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!https?://|#)([^)\s]+)(\))")


def published(text: str, home: str) -> str:
    """Return a page whose links lead to the repository: pictures to their bytes, all else to what is shown of it."""

    def turned(match: re.Match[str]) -> str:
        target = match[3].partition("#")[0]
        kind = "raw" if match[1] else "tree" if (ROOT / target).is_dir() else "blob"
        return f"{match[1]}{match[2]}{home}/{kind}/main/{match[3]}{match[4]}"

    return LINK.sub(turned, text)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=published(readme, project["urls"]["Source"]),
        long_description_content_type="text/markdown",
    )
