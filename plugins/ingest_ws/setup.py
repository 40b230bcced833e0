"""Compile the frame parser where cffi and a C compiler are there; everything else stands in pyproject.toml."""

import sys

from setuptools import setup

try:
    import cffi  # noqa: F401
except ImportError:
    print("headrace-ingest-ws: no cffi at build time, so no C parser; the pure-Python one will run", file=sys.stderr)
    setup()
else:
    setup(cffi_modules=["src/headrace_ingest_ws/build_parser.py:ffibuilder"])
