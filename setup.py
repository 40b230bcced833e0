"""Compile the JSON reader where cffi and a C compiler are there; everything else stands in pyproject.toml."""

import sys

from setuptools import setup

try:
    import cffi  # noqa: F401
except ImportError:
    print("headrace: no cffi at build time, so no JSON reader in C; structs of msgspec will do its work", file=sys.stderr)
    setup()
else:
    setup(cffi_modules=["core/headrace/build_json_columns.py:ffibuilder"])
