"""Runs in a process of its own: imports an author's contract class, and forks a child for each request on stdin.

Arguments: the test module's file, the class's name. Answers on stdout: `{"pid":N}` at once, `{"exit":code}` at the end.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from typing import Any, Final, NoReturn

MODULE: Final = "headrace_crash_target"


def load(file: str, qualname: str) -> Any:
    """The class `qualname` of the module in `file`."""
    spec = importlib.util.spec_from_file_location(MODULE, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    spec.loader.exec_module(module)
    found: Any = module
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def main(file: str, qualname: str) -> None:
    contract = load(file, qualname)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            _child(contract, request)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


def _child(contract: Any, request: dict[str, Any]) -> NoReturn:
    try:
        contract().child(request)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)


def run() -> None:
    main(*sys.argv[1:])


if __name__ == "__main__":
    run()
