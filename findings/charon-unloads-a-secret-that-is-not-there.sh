#!/usr/bin/env bash
# strongSwan 5.9.8 (Debian 12): unload-shared succeeds for a secret that is not loaded.
#
# unload-conn, unload-key, unload-pool and unload-authority reply success=no with "not found" for an unknown
# name. unload-shared replies success=yes, so a misspelt id looks like a secret that was removed. get-shared
# does not help to find it: a secret that was loaded without an id is not in its list.
requirement=vici==6.0.3
. "$(dirname "$0")/lib-strongswan.bash"

"$work/venv/bin/python" - <<'PY'
import vici

session = vici.Session()
session.load_shared({"type": "IKE", "data": "without an id", "owners": ["gw"]})
print("get-shared:", session.get_shared()["keys"])
outcomes = {}
for command, key in (("conn", "name"), ("key", "id"), ("pool", "name"), ("authority", "name"), ("shared", "id")):
    try:
        session.request(f"unload-{command}", {key: "00"})
        outcomes[command] = "success"
    except vici.exception.CommandException as error:
        outcomes[command] = str(error)
    print(f"unload-{command}:", outcomes[command])
assert [command for command in outcomes if outcomes[command] == "success"] == ["shared"]
assert session.get_shared()["keys"] == []
PY
