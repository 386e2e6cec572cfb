#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): charon reads a number with a leading zero as octal, also in times.
#
# "dpd_delay = 030" is 24 seconds and "0100m" is 64 minutes, while "08" is refused. swanctl.conf(5) describes
# a time as a number with an optional unit, and mentions no other base.
requirement=vici==6.0.3
. "$(dirname "$0")/lib-strongswan.bash"

"$work/venv/bin/python" - <<'PY'
import vici

session = vici.Session()
found = {}
for written in ("30", "030", "0x30", "0100m", "08"):
    try:
        session.load_conn({"gw": {"remote_addrs": ["192.0.2.1"], "dpd_delay": written}})
        found[written] = next(session.list_conns())["gw"]["dpd_delay"].decode()
    except vici.exception.CommandException as error:
        found[written] = str(error)
    print("dpd_delay =", written, "is", found[written])
assert [found[written] for written in ("30", "030", "0x30", "0100m")] == ["30", "24", "48", "3840"]
PY
