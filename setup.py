"""Builds the one extension module; everything static is in pyproject.toml."""

import os
import sys
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

PORTABLE = os.environ.get("VICIFAST_PORTABLE")  # "1": what other processors run, on this one
OPTIMIZE = os.environ.get("VICIFAST_OPTIMIZE") != "0"  # "0": a build in half the time, for the inner loop
SANITIZE = os.environ.get("VICIFAST_SANITIZE", "")  # such as "address,undefined"

# Objects of different builds must not be mixed up.
NAME = "-".join(
    filter(None, [SANITIZE.replace(",", "-"), "portable" if PORTABLE == "1" else "", "" if OPTIMIZE else "quick"])
)
BUILD = f"build/{NAME}" if NAME else "build"
# All of them are copied to the same place in the source: after another build a newer date there says nothing.
INPLACE = "--inplace" in sys.argv
STAMP = Path("build/inplace")
LAST = STAMP.read_text() if STAMP.exists() else ""

# The sanitizers' runtimes are not linked: they have to be loaded before Python is, so the Makefile preloads them.
# CPython's own flags contain -g, which makes wheels four times larger.
flags = [
    "-Wall",
    "-Wsign-compare",
    *([f"-fsanitize={SANITIZE}", "-g", "-O1"] if SANITIZE else ["-g0", "-O3" if OPTIMIZE else "-O0"]),
]
if not SANITIZE:
    # Nearly all texts are of a few bytes, on which vectorized loops lose: 3 % of decode, 4 % of a transcoding.
    flags.append("-fno-tree-vectorize")
    if sys.platform == "linux":
        flags.append("-fno-plt")  # a call of CPython's functions is a jump less: 3 % of decode, 5 % of encode

setup(
    ext_modules=cythonize(
        [
            Extension(
                "vicifast._wire",
                ["src/vicifast/_wire.pyx"],
                include_dirs=["src/vicifast"],  # for wire/chunk.h
                depends=glob("src/vicifast/wire/*"),
                define_macros=[
                    ("CYTHON_USE_MODULE_STATE", "1"),
                    ("CYTHON_USE_TYPE_SPECS", "1"),
                    *([("VICIFAST_PORTABLE", "1")] if PORTABLE == "1" else []),
                ],
                extra_compile_args=flags if os.name == "posix" else [],
            )
        ],
        build_dir=BUILD,
    ),
    options={"build": {"build_base": BUILD}, "build_ext": {"force": INPLACE and LAST != NAME}},
)
if INPLACE:
    STAMP.parent.mkdir(exist_ok=True)
    STAMP.write_text(NAME)
