"""The programs in the documentation that talk to NATS, with the bridge of a recorded daemon on the other side."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from harness import NatsServer, run, service, settings, witness
from pages import NATS, Block, blocks, each, recorded_charon, tell_events

from vicifast.testing import FakeCharon


async def tell_again_and_again(charon: FakeCharon) -> None:
    """Not once: a program hears only what comes after it has subscribed."""
    while True:
        await tell_events(charon)


@each([block for block in blocks("python") if NATS in block.text])
def test_program(block: Block, nats_server: NatsServer, capsys: pytest.CaptureFixture[str]) -> None:
    async def test() -> str:
        async with recorded_charon() as charon, service(settings(nats_server.url, charon.address)):
            async with witness(nats_server.url) as someone:
                await someone.ask("vici.gw1.cmd.version")
                telling = asyncio.create_task(tell_again_and_again(charon))
                await someone.sees("child-updown", count=10)
                source = block.text.replace(NATS, nats_server.url).replace("asyncio.run(main())", "")
                names: dict[str, object] = {"__name__": "__main__"}
                exec(compile(source, block.where, "exec"), names)
                main = asyncio.create_task(names["main"]())  # type: ignore[operator]
                printed = ""
                while not printed and not main.done():
                    await asyncio.sleep(0.01)
                    printed += capsys.readouterr().out
                telling.cancel()
                main.cancel()
                with suppress(asyncio.CancelledError):
                    await main
                return printed + capsys.readouterr().out

    nats_server.start()
    assert run(test(), 20)
