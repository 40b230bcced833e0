"""The contract of sinks: what is flushed is there, once, in order, whatever happened in between."""

from __future__ import annotations

from headrace.testing.sink_again import SinkAgain
from headrace.testing.sink_crashes import SinkCrashes
from headrace.testing.sink_stored import SinkStored


class SinkContract(SinkStored, SinkAgain, SinkCrashes):
    """Subclass it as `TestMySink`, with `make(context)` and `read_back(context)`; `help` shows what else may be given.

    The tests are those that fit what the class declares: `sink_resume`, `idempotence`, `holds`. A sink with `holds = False`
    promises nothing; only its life is tested.
    """
