#!/usr/bin/env bash
# python vici 6.0.3: a tuple, a set and None are sent to charon as the text that Python prints for them.
#
# A list becomes a VICI list; every other value becomes its str(), without an error. {"remote_addrs":
# ("192.0.2.1",)} asks charon for the address "('192.0.2.1',)", and list_sas({"ike": None}) for the SAs of a
# connection named "None", not for all.
source "$(dirname "$0")/lib-python-vici.bash"
run_python <<'EOF'
import vici
from vici.protocol import Message

for value in (["192.0.2.1"], ("192.0.2.1",), {"192.0.2.1"}, None):
    sent = dict(Message.deserialize(vici.protocol.FiniteStream(Message.serialize({"key": value}))))
    print(f"{value!r:16} is sent as {sent['key']}")
    assert sent["key"] == ([b"192.0.2.1"] if isinstance(value, list) else str(value).encode())
EOF
