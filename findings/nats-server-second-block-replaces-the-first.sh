#!/usr/bin/env bash
# nats-server 2.15.1: of two `accounts` or `jetstream` blocks in a configuration only the last counts.
# `nats-server -t` finds the configuration valid, and the log does not mention the repetition.
#
# Surprising, because the server refuses a configuration for a misspelt name, and `include` invites one file for
# each account. Here the user of the first file is refused, and a second jetstream block, which only sets a quota,
# drops the store_dir of the first: streams are stored below the folder for temporary files. The log has a warning
# about that folder, but not about the reason.
source "$(dirname "$0")/lib-nats.bash"
run_python <<'EOF'
import asyncio, os, subprocess

import nats
from nats.errors import Error
from server import HOME, start

os.environ["TMPDIR"] = str(HOME / "temporary")
(HOME / "a.conf").write_text("accounts { A { users: [{ user: a, password: p }], jetstream: enabled } }")
(HOME / "b.conf").write_text("accounts { B { users: [{ user: b, password: p }], jetstream: enabled } }")
configuration = HOME / "server.conf"
configuration.write_text(f"""
include "a.conf"
include "b.conf"
jetstream {{ store_dir: "{HOME}/store" }}
jetstream {{ max_file_store: 64MB }}
""")
misspelt = HOME / "misspelt.conf"
misspelt.write_text("jetstream { stor_dir: x }")


def check(path):
    result = subprocess.run([HOME / "venv/bin/nats-server", "-t", "-c", path], capture_output=True, text=True)
    output = (result.stdout + result.stderr).strip().replace(f"{HOME}/", "")
    print(f"$ nats-server -t -c {path.name}\n{output}\n[exit status {result.returncode}]")
    return result.returncode, len(output.splitlines())


async def ignore(error):
    pass


async def main():
    assert check(misspelt) == (1, 1)
    assert check(configuration) == (0, 1)
    log = HOME / "server.log"
    _, address = start("-c", configuration, "-l", log)
    outcomes = {}
    for user in ("a", "b"):
        try:
            client = await nats.connect(address, user=user, password="p", error_cb=ignore, allow_reconnect=False)
            outcomes[user] = "accepted"
            await client.jetstream().add_stream(name="S")
            await client.close()
        except Error as error:
            outcomes[user] = str(error)
        print(f"user {user}:", outcomes[user])
    assert outcomes == {"a": "nats: 'Authorization Violation'", "b": "accepted"}
    folders = [path.relative_to(HOME).as_posix() for path in HOME.glob("*/**/streams/S")]
    print("folder of the stream:", *folders)
    assert folders == ["temporary/nats/jetstream/B/streams/S"] and not (HOME / "store").exists()
    warnings = [line.partition("[WRN] ")[2] for line in log.read_text().splitlines() if "[WRN]" in line]
    print("warnings:", *warnings, sep="\n")
    assert warnings == [
        "Plaintext passwords detected, use nkeys or bcrypt",
        "Temporary storage directory used, data could be lost on system reboot",
    ]


asyncio.run(main())
EOF
