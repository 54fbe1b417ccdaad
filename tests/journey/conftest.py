"""What tests of folders with several models share."""

from pathlib import Path

import pytest
from decoder_files import one_block


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    return one_block(tmp_path / "one")
