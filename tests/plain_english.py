"""Finds turns of phrase that readers have to decode, in documentation, docstrings, comments and messages: `make lint`.

Each row of `PHRASES` is a pattern and what to write in its place. A line that has to keep one, say because it quotes
another program, is listed in `KEPT` by file and text.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

PHRASES = {
    r"told|tells?(?!\(\))|telling": "report, log, record, say, show",
    r"for ever": "indefinitely, forever",
    r"for want of": "without",
    r"(?:one|connections?|server|task|file|name|mind|process|stream) of (?:its|their|our|his) own": "its own, separate",
    r"stands? in for": "replaces",
    r"stands? (?:in|on|under|at|beside|before|behind|there|twice|alone)": "is listed in, is in, occurs",
    r"whoever|who (?:asks?|asked|reads?|writes?|wants?|forgets?|needs?|knows?|listens?|may|comes?)": "name the actor",
    r"what (?:comes|came|is waiting|is there|was there|waits|stands|goes|went)": "name the thing",
    r"(?<!there )(?:is|are|was) no (?!longer|more|need|way|reason|such|difference|limit|room)\w+": "is not a, invalid",
    r"so (?:many|much) (?:at|seconds|bytes|lines|events|requests|of)\b": "that many, a number of",
    r"by itself": "automatically, alone",
    r"as it (?:were|goes)": "delete it",
    r"of late": "recently",
    r"is to be had": "is available",
    r"untold": "unreported",
    r"(?:holds?|held|holding) up": "block, delay",
    r"on (?:its|their) way": "in flight, in transit, pending",
    r"tr(?:y|ies|ied|ying) again": "retry",
    r"mend(?:s|ed|ing)?": "fix, correct, repair",
    r"anew": "again, or a verb with re-",
    r"(?:goes|went|going) on": "continue",
    r"(?:takes?|took|taken|taking) over": "restore, replace, apply",
    r"all the same": "nevertheless, still",
    r"in silence": "silently",
    r"without end": "continuously",
    r"nobody": "no client, no process",
    r"somebody|someone": "a client, another user",
}
_PATTERN = re.compile("|".join(f"(?P<p{i}>\\b(?:{phrase})\\b)" for i, phrase in enumerate(PHRASES)), re.IGNORECASE)
_ADVICE = list(PHRASES.values())

SUFFIXES = {
    ".md",
    ".rst",
    ".py",
    ".pyi",
    ".pyx",
    ".pxi",
    ".pxd",
    ".h",
    ".toml",
    ".conf",
    ".yml",
    ".service",
    ".sh",
    ".bash",
}
PLACES = (
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs",
    "src",
    "bridge",
    "examples",
    "tests",
    "benchmarks",
    "findings",
)

KEPT = {  # methods of other libraries
    ("src/vicifast/compat/protocol.py", "return self.tell() < len(self)"),
    ("bridge/vicibridge/contract/codecs.py", "count = unpacker.tell()"),
}


class Finding(NamedTuple):
    path: str
    line: int
    phrase: str
    advice: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r}: {self.advice}"


def findings(path: str, text: str) -> list[Finding]:
    """Return every such phrase in a text."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in _PATTERN.finditer(line):
            if (path, line.strip()) not in KEPT:
                found.append(Finding(path, number, match[0], _ADVICE[int(str(match.lastgroup)[1:])]))
    return found


def main() -> int:
    listed = subprocess.run(["git", "ls-files", *PLACES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [path for path in listed.splitlines() if Path(path).suffix in SUFFIXES and ROOT / path != Path(__file__)]
    found = [finding for path in paths for finding in findings(path, (ROOT / path).read_text("utf-8"))]
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
