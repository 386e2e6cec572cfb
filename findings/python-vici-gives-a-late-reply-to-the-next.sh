#!/usr/bin/env bash
# python vici 6.0.3: after a timeout of the socket, each call returns the reply of the call before it.
#
# The documentation of Session offers a timeout on the socket. When it ends a call, the session stays usable
# although a reply is still pending: the next call returns it as its own. Here stats() returns the reply to
# version(), without an error, and every later call is one behind. The daemon is one end of a
# socket pair, which answers in order as charon does.
source "$(dirname "$0")/lib-python-vici.bash"
run_python <<'EOF'
import socket

import vici
from daemon import framed
from vici.protocol import Packet

ours, daemon = socket.socketpair()
ours.settimeout(0.2)
session = vici.Session(ours)
try:
    session.version()
except socket.timeout as error:
    print("version():", type(error).__name__)
daemon.sendall(framed(Packet.CMD_RESPONSE, message={"daemon": "charon", "version": "6.0.3"}))
daemon.sendall(framed(Packet.CMD_RESPONSE, message={"uptime": {"running": "5 minutes"}}))
stats = dict(session.stats())
print("stats():  ", stats)
asked = daemon.recv(1000)
print("asked for:", asked)
assert asked == framed(Packet.CMD_REQUEST, b"version") + framed(Packet.CMD_REQUEST, b"stats")
assert stats == {"daemon": b"charon", "version": b"6.0.3"}
EOF
