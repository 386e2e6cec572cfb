# Sourced by the findings about strongSwan's Python module. Installs it into a temporary folder. `run_python` runs the
# program on standard input there; `from daemon import framed` gives it
#
#     framed(kind, name=b"", message={}) -> bytes
#
# a packet with its length, as charon sends it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check vici==6.0.3
cat > "$work/daemon.py" <<'END'
import struct

from vici.protocol import Message


def framed(kind, name=b"", message={}):
    body = bytes([kind]) + (bytes([len(name)]) + name if name else b"") + Message.serialize(message)
    return struct.pack("!I", len(body)) + body
END

run_python() {
    PYTHONPATH="$work" "$work/venv/bin/python" -
}
