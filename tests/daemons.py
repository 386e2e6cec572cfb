"""Runs the tests that need charon on other strongSwans: `python -m tests.daemons [SUITE...] [-- PYTEST...]`, as root.

Each suite of Debian has a root filesystem in the cache folder, made with debootstrap by the first run; delete it there
for newer packages. The sdist in dist is built and installed in it, with the suite's own Python and compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SUITES = ("bookworm", "trixie", "sid")
PACKAGES = (
    "ca-certificates",
    "gcc",
    "iproute2",
    "libc6-dev",
    "netbase",  # /etc/protocols, without which charon refuses [tcp/80] in traffic selectors
    "openssl",
    "python3-dev",
    "python3-venv",
    "strongswan-charon",
    "strongswan-swanctl",
    "libcharon-extra-plugins",
    "libstrongswan-standard-plugins",
    "libstrongswan-extra-plugins",
)
ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vicifast" / "daemons"
NEEDED = "needed: root on Linux with /dev/net/tun, and debootstrap (Debian: apt-get install debootstrap)"
# The lab enters mount namespaces, which leads out of a chroot, so pivot_root changes the root itself. The network stays
# the host's, and so do its resolver and certificates. Every mount vanishes with the namespace.
ENTER = """
set -e
root=$1 work=$2
shift 2
mount --bind "$root" "$root"
for place in /dev /proc /sys; do mount --rbind $place "$root$place"; done
for place in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e $place ] || { touch "$root$place"; mount --bind $place "$root$place"; }
done
mount -t tmpfs run "$root/run"
mount --bind "$work" "$root/tmp"
cd "$root"
pivot_root . .
umount -l .
cd /tmp
exec "$@"
"""
CHECK = """
set -e
python3 -m venv --clear /venv
/venv/bin/pip install --quiet --upgrade "pip>=25.1"
cd /tmp/source
/venv/bin/pip install --quiet ".[demo]" --group test
exec /venv/bin/python -m pytest -q -p no:cacheprovider -m lab "$@"
"""


def run(*words: str | Path, **variables: str) -> None:
    subprocess.run(words, env=os.environ | variables, check=True)


def root(suite: str) -> Path:
    """The root filesystem of a suite, made when it is missing."""
    place, part = CACHE / suite, CACHE / f"{suite}.part"
    if not place.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(parents=True, exist_ok=True)
        run("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, part)
        part.rename(place)
    return place


def inside(place: Path, work: Path, *words: str) -> None:
    """Run a command with this root, and `work` as its /tmp."""
    own = {"HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": "/tmp"}
    run("unshare", "--mount", "sh", "-c", ENTER, "sh", place, work, *words, VICIFAST_REQUIRE_CHARON="1", **own)


def versions(place: Path) -> str:
    """Return the relevant packages of a root filesystem."""
    query = ["dpkg-query", "--show", "--showformat=${Package} ${Version}\\n", "strongswan-charon", "python3"]
    done = subprocess.run(["chroot", place, *query], capture_output=True, text=True, check=True)
    return ", ".join(done.stdout.splitlines())


def check(suite: str, sdist: Path, arguments: list[str]) -> str:
    """Run the tests in a suite; return the versions that they ran on."""
    place = root(suite)
    found = f"{suite}: {versions(place)}"
    print(f"\n== {found}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vicifast-daemons-") as work, tarfile.open(sdist) as archive:
        archive.extractall(work, filter="data")
        (source,) = Path(work).iterdir()
        source.rename(Path(work, "source"))
        inside(place, Path(work), "sh", "-c", CHECK, "sh", *arguments)
    return found


def main() -> None:
    words = sys.argv[1:]
    given, arguments = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    if os.geteuid() != 0 or not Path("/dev/net/tun").exists() or not shutil.which("debootstrap"):
        sys.exit(NEEDED)
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    passed, failed = [], []
    for suite in given or SUITES:
        try:
            passed.append(check(suite, sdist, arguments))
        except subprocess.CalledProcessError:
            failed.append(suite)
    print("\npassed:", *passed, sep="\n  ")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
