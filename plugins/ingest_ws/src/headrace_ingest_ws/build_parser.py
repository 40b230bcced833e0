"""Builds the C parser: run by setup.py at install time, through cffi's API mode."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

_HERE = Path(__file__).parent

ffibuilder = FFI()
_declared = "\n".join((_HERE / name).read_text() for name in ("wsframes.h", "gather.h", "columns.h"))
ffibuilder.cdef(re.sub(r"/\*.*?\*/|^#.*?$", "", _declared, flags=re.DOTALL | re.MULTILINE))
ffibuilder.set_source(
    "headrace_ingest_ws._wsframes",
    # one translation unit, so that the compiler can inline across the files
    '#include <stdint.h>\n#include "wsframes.c"\n#include "json.c"\n#include "gather.c"\n#include "columns.c"\n',
    include_dirs=[str(_HERE)],
    depends=[str(_HERE / name) for name in ("wsframes.c", "wsframes.h", "json.c", "gather.c", "gather.h", "columns.c", "columns.h")],
    extra_compile_args=["-O3", "-std=c11"],
    optional=True,  # without a compiler the install succeeds, and parser_python.py does the work
)
