"""Refuses to test a stale build, and settings for the whole test run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import hypothesis
import pytest

REBUILD = "python setup.py build_ext --inplace"

hypothesis.settings.register_profile("vicifast", max_examples=400, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("vicifast")


def stale(package: Path) -> str:
    """Why the extension in `package` must be rebuilt; empty when it is current or comes from a wheel."""
    source = package / "_wire.pyx"
    if not source.exists():  # wheels do not carry it
        return ""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    built = [path for suffix in suffixes for path in package.glob(f"_wire{suffix}")]
    if not built:
        return f"{source} has not been built for this Python; run: {REBUILD}"
    if max(path.stat().st_mtime for path in built) < source.stat().st_mtime:
        return f"{built[0].name} is older than _wire.pyx; run: {REBUILD}"
    return ""


def pytest_sessionstart() -> None:
    spec = importlib.util.find_spec("vicifast")
    if spec is None or not spec.submodule_search_locations:
        pytest.exit("vicifast is not installed; run: pip install -e .", returncode=4)
    for place in spec.submodule_search_locations:
        if reason := stale(Path(place)):
            pytest.exit(reason, returncode=4)
