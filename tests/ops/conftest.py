"""The node models of the onnx package, collected once for all tests."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from .node_models import Case, node_models


@pytest.fixture(scope="session")
def all_node_models() -> list[Case]:
    return node_models()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[Any]:
    """Reference implementations warn of divisions by zero and casts of NaN; that is what they are fed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
