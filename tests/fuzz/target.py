"""The process that libFuzzer runs in; `__main__` starts it."""

from __future__ import annotations

import sys

import atheris
from checks import check

atheris.Setup(sys.argv, check)
atheris.Fuzz()
