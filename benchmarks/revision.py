"""Another revision of this repository as a peer, built in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

_ROOT = Path(__file__).parents[1]


def python_of(revision: str) -> Path:
    """Return the interpreter of an environment with that revision and the extra `bridge`.

    It is built once and kept in `build/revisions`. Raises CalledProcessError if git does not know the revision or pip
    cannot build it.
    """
    named = ["git", "rev-parse", "--verify", f"{revision}^{{commit}}"]
    commit = subprocess.run(named, cwd=_ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    home = _ROOT / "build" / "revisions" / commit
    python, made = home / "bin" / "python", home / "made"
    if not made.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        with TemporaryDirectory() as source:
            archive = subprocess.run(["git", "archive", commit], cwd=_ROOT, check=True, stdout=subprocess.PIPE)
            subprocess.run(["tar", "-x", "-C", source], check=True, input=archive.stdout)
            subprocess.run([python, "-m", "pip", "install", "--quiet", f"{source}[bridge]"], check=True)
        made.touch()
    return python
