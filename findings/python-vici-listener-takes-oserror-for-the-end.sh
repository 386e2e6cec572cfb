#!/usr/bin/env bash
# python vici 6.0.3: an EventListener treats an OSError of the function it calls as the end of the connection.
#
# A handler that cannot write a file or reach a host raises an OSError. The listener does not propagate it: it
# drops the session, calls the functions for a disconnection, and returns False, which means that no session
# is available. The exception is lost, and the connection to charon still works.
source "$(dirname "$0")/lib-python-vici.bash"
run_python <<'EOF'
import socket

import vici
from daemon import framed
from vici.protocol import Packet

ours, daemon = socket.socketpair()
session = vici.Session(ours)
listener = vici.EventListener(session)


@listener.on_events(["ike-updown"])
def write(name, message):
    open("/no/such/directory/log", "a")


@listener.on_disconnected()
def disconnected(which):
    print("on_disconnected was called")


daemon.sendall(framed(Packet.EVENT_CONFIRM) + framed(Packet.EVENT, b"ike-updown", {"up": "yes"}))
daemon.sendall(framed(Packet.EVENT_CONFIRM))
result = listener.listen()
print("listen() returned", result, "- the listener's session is", listener.session)
daemon.sendall(framed(Packet.CMD_RESPONSE, message={"daemon": "charon"}))
print("the session still works:", dict(session.version()))
assert result is False and listener.session is None
EOF
