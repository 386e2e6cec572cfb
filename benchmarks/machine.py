"""The machine and software of a measurement."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import sysconfig
from pathlib import Path

import vicifast

PEERS = ("vici", "msgspec", "ormsgpack", "msgpack", "orjson")
C_PEERS = ("vici", "davici")


def missing() -> list[str]:
    """Packages that are required but not installed."""
    return [name for name in (*PEERS, "rich") if importlib.util.find_spec(name) is None]


def describe() -> dict[str, str]:
    """Processor, interpreter, and the versions of all libraries."""
    return {
        "processor": f"{_processor()}, {os.cpu_count()} CPUs",
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}, {python_build()}",
        "vicifast": f"{importlib.metadata.version('strongswan-vicifast')}, {Path(vicifast._wire.__file__).name}",
        "peers": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PEERS),
        "C and Go peers": _c_peers(),
    }


def python_build() -> str:
    """The interpreter's compiler and the build options that affect its speed."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    flags = f"{sysconfig.get_config_var('OPT') or ''} {sysconfig.get_config_var('CFLAGS') or ''}"
    levels = re.findall(r"-O\w+", flags)
    pgo = "with" if "--enable-optimizations" in arguments else "without"
    lto = "with" if "--with-lto" in arguments else "without"
    return f"{platform.python_compiler()} {levels[-1] if levels else ''}, {pgo} PGO, {lto} LTO"


def busy() -> str | None:
    """A warning when other processes use the machine."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < 0.5:
        return None
    return f"the machine is busy (load average {load:.1f}): absolute figures are too high, ratios less certain"


def _processor() -> str:
    if sys.platform == "linux":
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _c_peers() -> str:
    found = [f"lib{name}" for name in C_PEERS if ctypes.util.find_library(name)]
    return f"{', '.join(found)} installed, but not measured here" if found else "none found"
