#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): a negotiation that fails raises ike-updown without "up", as the end of a
# tunnel does.
#
# VICI documents ike-updown for an IKE_SA that is established or terminated. charon also raises it, without "up",
# for one that was never established: here the peer has no configuration for us and answers
# NO_PROPOSAL_CHOSEN. A monitor that counts a message without "up" as "tunnel down" reports each failed
# attempt. Only the state, CONNECTING, distinguishes them.
requirement=vici==6.0.3
. "$(dirname "$0")/lib-strongswan.bash"

"$work/venv/bin/python" - <<'PY'
import vici

session = vici.Session()
events = vici.Session().listen(["ike-updown"], timeout=0.5)
next(events)
session.load_conn({"gw": {
    "local_addrs": ["127.0.0.1"], "remote_addrs": ["127.0.0.2"],
    "local": {"auth": "psk"}, "remote": {"auth": "psk"}, "children": {"net": {}},
}})
try:
    list(session.initiate({"child": "net", "timeout": 5000}))
except vici.exception.CommandException as error:
    print("initiate:", error)
name, message = next(events)
print(name.decode(), {"up": message.get("up"), "gw": {"state": message["gw"]["state"]}})
assert "up" not in message and message["gw"]["state"] == b"CONNECTING"
PY
