"""Builds the JSON reader in C: run by setup.py at install time, through cffi's API mode."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef(re.sub(r"/\*.*?\*/|^#.*?$", "", (_HERE / "json_columns.h").read_text(), flags=re.DOTALL | re.MULTILINE))
ffibuilder.set_source(
    "headrace._json_columns",
    '#include "json_columns.c"\n',
    include_dirs=[str(_HERE)],
    depends=[str(_HERE / name) for name in ("json_columns.c", "json_columns.h")],
    extra_compile_args=["-O3", "-std=c11"],
    optional=True,  # without a compiler the install succeeds, and json_structs.py does the work
)
