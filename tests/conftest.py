"""Refuses a stale build, configures the test run, and provides real daemons."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from lab import Lab
    from onloop import Kit

REBUILD = "python setup.py build_ext --inplace"
REQUIRE = "VICIFAST_REQUIRE_CHARON"

hypothesis.settings.register_profile("vicifast", max_examples=400, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("vicifast")


def stale(package: Path) -> str:
    """Why the extension in `package` must be rebuilt; empty when it is current or comes from a wheel."""
    sources = [package / "_wire.pyx", *(package / "wire").glob("*")]
    if not sources[0].exists():  # wheels do not carry it
        return ""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    built = [path for suffix in suffixes for path in package.glob(f"_wire{suffix}")]
    if not built:
        return f"{sources[0]} has not been built for this Python; run: {REBUILD}"
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    if max(path.stat().st_mtime for path in built) < newest.stat().st_mtime:
        return f"{built[0].name} is older than {newest.relative_to(package)}; run: {REBUILD}"
    return ""


def pytest_sessionstart() -> None:
    # A run started in the background ignores Ctrl-C, and so would every program that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    spec = importlib.util.find_spec("vicifast")
    if spec is None or not spec.submodule_search_locations:
        pytest.exit("vicifast is not installed; run: pip install -e .", returncode=4)
    for place in spec.submodule_search_locations:
        if reason := stale(Path(place)):
            pytest.exit(reason, returncode=4)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "faults: breaks something real, or waits for it, for seconds; only make test-faults runs it"
    )
    config.addinivalue_line(
        "markers",
        f'lab(nats=False, since=""): runs real daemons; {REQUIRE}=1 makes it fail where there are none. '
        "`since` is the first strongSwan that has what it tests; with an older one it is skipped",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `lab` if the lab is not available; fail if it is required (CI)."""
    mark = item.get_closest_marker("lab")
    if mark is None:
        return
    from lab import missing, version  # after the check of the build

    if reason := missing(nats=mark.kwargs.get("nats", False)):
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but {reason}", pytrace=False)
        pytest.skip(reason)
    since = mark.kwargs.get("since", "0")
    if version() < tuple(map(int, since.split("."))):
        pytest.skip(f"needs strongSwan {since}: make test-daemons")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two charons and a NATS server; the test must be marked `lab(nats=True)`."""
    from lab import Lab

    with Lab(nats=True) as lab:
        yield lab


@pytest.fixture(params=["blocking", "asyncio"])
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    """Makes sessions and followers of each kind in turn, for tests that block."""
    from onloop import Kit, Loop, time_limit

    with time_limit(), Loop() as loop, ThreadPoolExecutor() as pool:
        yield Kit(loop, pool, request.param)
