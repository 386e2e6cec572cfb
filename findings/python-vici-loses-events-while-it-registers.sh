#!/usr/bin/env bash
# python vici 6.0.3: listen() drops events that arrive while it registers for the next one.
#
# listen(["ike-updown", "child-updown"]) registers one event after the other. An ike-updown that charon sends
# before it confirms child-updown is read and dropped, although its registration was confirmed, and nothing
# reports it. The daemon is one end of a socket pair, which sends what charon sends in that case.
source "$(dirname "$0")/lib-python-vici.bash"
run_python <<'EOF'
import socket

import vici
from daemon import framed
from vici.protocol import Packet

ours, daemon = socket.socketpair()
session = vici.Session(ours)
daemon.sendall(framed(Packet.EVENT_CONFIRM))
daemon.sendall(framed(Packet.EVENT, b"ike-updown", {"up": "yes", "gw": {"uniqueid": "1"}}))
daemon.sendall(framed(Packet.EVENT_CONFIRM))
daemon.sendall(framed(Packet.EVENT, b"ike-updown", {"up": "yes", "gw": {"uniqueid": "2"}}))
events = session.listen(["ike-updown", "child-updown"], timeout=0.5)
found = [next(events), next(events)]
for event in found:
    print("event:", event)
print("asked for:", daemon.recv(1000))
assert found[0][1]["gw"]["uniqueid"] == b"2" and found[1] == (None, None)
daemon.sendall(framed(Packet.EVENT_CONFIRM) * 2)
events.close()
EOF
