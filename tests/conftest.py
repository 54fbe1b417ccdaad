"""Tests keep what is measured in a cache of their own."""

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as place:
        before = os.environ.get("ONNXPRUNE_CACHE")
        os.environ["ONNXPRUNE_CACHE"] = place
        yield
        if before is None:
            del os.environ["ONNXPRUNE_CACHE"]
        else:
            os.environ["ONNXPRUNE_CACHE"] = before
