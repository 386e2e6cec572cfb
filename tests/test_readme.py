"""What the README shows is what happens."""

from __future__ import annotations

import asyncio
import doctest
import re
from pathlib import Path

import pytest

from vicifast.testing import FakeCharon

README = Path(__file__).parent.parent / "README.md"


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (found,) = [text for text in blocks if containing in text]
    return str(found)


def test_prompt_examples() -> None:
    failed, tried = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert tried and not failed


def test_blocking_session_example(capsys: pytest.CaptureFixture[str]) -> None:
    source = block("python", "import Session")

    async def run() -> None:
        async with FakeCharon() as charon:
            charon.on("version", {"daemon": "charon"})
            charon.on("list-sas", {}, stream=[("list-sa", {"gw": {"uniqueid": "1"}})])
            charon.on("rekey", {"success": "yes", "matches": "1"})
            await asyncio.to_thread(exec, source.replace("unix:///var/run/charon.vici", charon.address), {})
            assert ("rekey", {"ike": "site-001"}) in charon.requests

    asyncio.run(asyncio.wait_for(run(), 10))
    assert capsys.readouterr().out.splitlines() == ["{'daemon': 'charon'}", "{'gw': {'uniqueid': '1'}}"]


def test_session_example(capsys: pytest.CaptureFixture[str]) -> None:
    source = block("python", "AsyncSession").replace("asyncio.run(main())", "")

    async def run() -> None:
        async with FakeCharon() as charon:
            charon.on("version", {"daemon": "charon"})
            charon.on("list-sas", {}, stream=[("list-sa", {"gw": {"uniqueid": "1"}})])
            namespace: dict[str, object] = {}
            exec(source.replace("unix:///var/run/charon.vici", charon.address), namespace)
            main = asyncio.ensure_future(namespace["main"]())  # type: ignore[operator]
            await charon.registered("child-updown")
            charon.emit("ike-updown", {"up": "yes", "gw": {}})
            while "ike-updown" not in (printed := capsys.readouterr().out):
                told.append(printed)
                await asyncio.sleep(0.01)
            told.append(printed)
            main.cancel()
            await asyncio.gather(main, return_exceptions=True)

    told: list[str] = []
    asyncio.run(asyncio.wait_for(run(), 10))
    assert "".join(told).splitlines() == [
        "{'daemon': 'charon'}",
        "{'gw': {'uniqueid': '1'}}",
        "ike-updown {'up': 'yes', 'gw': {}}",
    ]


def test_configuration_example(tmp_path: Path) -> None:
    config = pytest.importorskip("vicibridge.config", reason="needs the bridge extra")
    (tmp_path / "bridge.toml").write_text(block("toml", "[[gateway]]"))
    loaded = config.load(tmp_path / "bridge.toml")
    assert loaded.gateway[0].node == "gw1" and loaded.commands.allow == ["@read"]
