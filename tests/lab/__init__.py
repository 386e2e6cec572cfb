"""Real daemons for tests and for interactive use: see `Lab`."""

from .daemons import LabError, version
from .lab import Lab, missing

__all__ = ["Lab", "LabError", "missing", "version"]
