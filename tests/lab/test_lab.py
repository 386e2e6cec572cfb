"""The lab works, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from vicifast.aio import AsyncSession

from . import Lab, LabError, sas

pytestmark = pytest.mark.lab


def watch(lab: Lab) -> list[int]:
    """Return descriptors with which `all_end` waits for every process of the lab."""
    return watch_pids([lab.left.pid, lab.right.pid, lab.left.namespace.pid, lab.right.namespace.pid])


def watch_pids(pids: Iterable[int | None]) -> list[int]:
    return [os.pidfd_open(pid) for pid in pids if pid is not None]


def running(processes: list[int]) -> int:
    """Return the number of processes that have not ended."""
    return len(processes) - len(select.select(processes, [], [], 0)[0])


def all_end(processes: list[int]) -> bool:
    """Whether each process ends within 5 seconds; closes the descriptors."""
    ends = [bool(select.select([process], [], [], 5)[0]) for process in processes]
    for process in processes:
        os.close(process)
    return all(ends)


async def established(address: str) -> set[str]:
    async with AsyncSession(address, timeout=5) as session:
        return {name async for message in session.stream("list-sas") for name in message}


def test_sas_come_up_and_everything_is_gone_after() -> None:
    with Lab() as lab:
        names = asyncio.run(sas.up(lab, 2))
        assert asyncio.run(established(lab.left.address)) == {"site-001", "site-002"} == set(names)
        assert asyncio.run(established(lab.right.address)) == {"site-001", "site-002"}
        processes = watch(lab)
        assert running(processes) == 4
    assert running(processes) == 0 and all_end(processes)
    assert not lab.directory.exists()


def test_everything_is_gone_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        processes = watch(lab)
        raise ZeroDivisionError
    assert len(processes) == 4
    assert running(processes) == 0 and all_end(processes)
    assert not lab.directory.exists()


def test_whole_life_of_sas() -> None:
    async def life(lab: Lab) -> None:
        names = await sas.up(lab, 2)
        await sas.send(lab, names)
        await sas.rekey_child(lab, names)
        await sas.rekey_ike(lab, names)
        await sas.update(lab, names)
        await sas.send(lab, names)
        await sas.terminate(lab, names)
        assert await established(lab.right.address) == set()

    with Lab() as lab:
        asyncio.run(asyncio.wait_for(life(lab), 30))


def test_a_charon_can_be_killed_stopped_and_started_again() -> None:
    with Lab() as lab:
        names = asyncio.run(sas.up(lab, 1))
        lab.left.kill()
        assert lab.left.pid is None
        lab.left.start()
        assert asyncio.run(established(lab.left.address)) == set()
        assert asyncio.run(established(lab.right.address)) == set(names)
        lab.left.stop()
        lab.left.start()
        assert asyncio.run(sas.up(lab, 1)) == names


def test_two_labs_side_by_side() -> None:
    with Lab() as one, Lab() as other:
        asyncio.run(sas.up(one, 1))
        assert asyncio.run(established(other.right.address)) == set()


def test_failed_start_is_explained() -> None:
    with Lab() as lab:
        lab.left.kill()
        (lab.directory / "left.conf").write_text("charon {")
        with pytest.raises(LabError, match="left does not start:\n"):
            lab.left.start()


LAB_THAT_WAITS = """
import time
from lab import Lab
with Lab() as lab:
    print(lab.left.pid, lab.right.pid, lab.left.namespace.pid, lab.right.namespace.pid, flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_process_of_the_lab(number: signal.Signals, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent.parent), *sys.path])
    env = os.environ | {"PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    argv = [sys.executable, "-c", LAB_THAT_WAITS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as process:
        assert process.stdout is not None
        processes = watch_pids(map(int, process.stdout.readline().split()))
        assert running(processes) == 4
        process.send_signal(number)
        process.wait(10)
    assert all_end(processes)


def test_directories_of_killed_labs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = tmp_path / "vicifast-lab-killed"
    killed.mkdir()
    with Lab() as living:
        for directory in (killed, living.directory):
            os.utime(directory, (0, 0))
        with Lab():
            assert not killed.exists()
            assert living.directory.exists()


@pytest.mark.lab(nats=True)
def test_nats_keeps_its_port_over_a_restart() -> None:
    with Lab(nats=True) as lab:
        url = lab.nats.url
        lab.nats.kill()
        lab.nats.start()
        assert lab.nats.url == url
