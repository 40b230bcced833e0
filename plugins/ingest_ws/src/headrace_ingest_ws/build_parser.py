"""Builds the C parser: run by setup.py at install time, through cffi's API mode."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

ffibuilder = FFI()
ffibuilder.cdef(re.sub(r"/\*.*?\*/", "", (_HERE / "wsframes.h").read_text(), flags=re.DOTALL))
ffibuilder.set_source(
    "headrace_ingest_ws._wsframes",
    '#include <stdint.h>\n#include "wsframes.c"\n#include "sockets.c"\n',
    include_dirs=[str(_HERE)],
    depends=[str(_HERE / name) for name in ("wsframes.c", "wsframes.h", "sockets.c")],
    extra_compile_args=["-O3", "-std=c11"],
    optional=True,  # without a compiler the install succeeds, and parser_python.py does the work
)
