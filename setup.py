"""Builds the one extension module; everything static is in pyproject.toml."""

import os
import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

PORTABLE = os.environ.get("VICIFAST_PORTABLE")  # "1": what other processors run, on this one
SANITIZE = os.environ.get("VICIFAST_SANITIZE", "")  # such as "address,undefined"

# Objects of different builds must not be mixed up.
NAME = "-".join(filter(None, [SANITIZE.replace(",", "-"), "portable" if PORTABLE == "1" else ""]))
BUILD = f"build/{NAME}" if NAME else "build"

# The sanitizers' runtimes are not linked: they have to be loaded before Python is, so the Makefile preloads them.
# CPython's own flags contain -g, which makes wheels four times larger.
flags = ["-Wall", "-Wsign-compare", *([f"-fsanitize={SANITIZE}", "-g", "-O1"] if SANITIZE else ["-g0", "-O3"])]
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
    options={"build": {"build_base": BUILD}},
)
