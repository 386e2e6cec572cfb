"""The pytest fixture that vicifast provides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import BlockingFakeCharon


@pytest.fixture
def fake_charon() -> Iterator[BlockingFakeCharon]:
    """A fake charon that listens at `fake_charon.address`; see `vicifast.testing`."""
    from .testing import BlockingFakeCharon

    with BlockingFakeCharon() as charon:
        yield charon
