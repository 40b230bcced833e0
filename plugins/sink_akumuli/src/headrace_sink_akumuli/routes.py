"""Routes of the admin server for dashboards: what Akumuli has, as JSON that Grafana's Infinity datasource reads.

    GET /akumuli/metrics
    GET /akumuli/series?metric=temperature&from=MS&to=MS&step=1m&func=mean&device=boiler-1&class=boiler

Akumuli's own answers have no header, no proper times, and say errors with status 200; names come back here as they were in the events.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any, Final

from aiohttp import web

from headrace_sink_akumuli.names import metric_name, parse, plain, tag_value
from headrace_sink_akumuli.wire import Questions, ServerGone, ServerRefused

FUNCTIONS: Final = ("mean", "min", "max", "sum", "count", "first", "last")
ROWS_MAX: Final = 100_000
_STEP: Final = re.compile(r"[1-9]\d{0,8}(us|ms|s|m|h|d)")
_OWN: Final = ("metric", "from", "to", "step", "func")


class Routes:
    """The handlers; they ask the server in threads, as its HTTP side is a blocking client here."""

    def __init__(self, questions: Questions, metric_prefix: str) -> None:
        self._questions, self._prefix = questions, metric_prefix

    def add(self, app: web.Application) -> None:
        app.router.add_get("/akumuli/metrics", self.metrics)
        app.router.add_get("/akumuli/series", self.series)

    async def metrics(self, request: web.Request) -> web.Response:
        """The readings that there are, as a list of names."""
        return await self._answer(self._metrics)

    async def series(self, request: web.Request) -> web.Response:
        """Rows of time (Unix milliseconds), value, and the tags of a series, by series and time."""
        try:
            question = asked(request.query, self._prefix)
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return await self._answer(self._series, question)

    async def _answer(self, work: Any, *arguments: Any) -> web.Response:
        try:
            return web.json_response(await asyncio.to_thread(work, *arguments))
        except ServerRefused as refused:
            return web.json_response({"error": refused.reply}, status=400)
        except ServerGone as gone:
            return web.json_response({"error": str(gone)}, status=503)

    def _metrics(self) -> list[str]:
        found = (name.removeprefix(self._prefix) for name in self._questions.metrics() if name.startswith(self._prefix))
        return sorted(plain(name) for name in found if not name.startswith("headrace."))

    def _series(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        if question["group-aggregate"]["metric"] not in self._questions.metrics():
            return []
        return list(rows(self._questions.query(question).decode()))


def asked(query: Any, prefix: str) -> dict[str, Any]:
    """The server's question for the parameters of a request; a ValueError says which is wrong."""
    metric, step, function = query.get("metric", ""), query.get("step", "1m"), query.get("func", "mean")
    if not metric:
        raise ValueError("metric: expected the name of a reading, got none")
    if function not in FUNCTIONS:
        raise ValueError(f"func: expected one of {', '.join(FUNCTIONS)}, got {function!r}")
    if not _STEP.fullmatch(step):
        raise ValueError(f"step: expected a number and us, ms, s, m, h or d, got {step!r}")
    span = {}
    for name in ("from", "to"):
        if not re.fullmatch(r"\d{1,13}", text := query.get(name, "")):
            raise ValueError(f"{name}: expected Unix milliseconds, got {text!r}")
        span[name] = int(text) * 1_000_000
    where = {tag_value(tag): [tag_value(value) for value in query.getall(tag)] for tag in query if tag not in _OWN}
    question: dict[str, Any] = {
        "group-aggregate": {"metric": prefix + metric_name(metric), "step": step, "func": [function]},
        "range": span,
        "order-by": "series",
        "output": {"format": "csv", "timestamp": "raw"},
        "limit": ROWS_MAX,
    }
    return {**question, "where": where} if where else question


def rows(text: str) -> Iterator[dict[str, Any]]:
    """The server's lines as rows; names as they were in the events."""
    for line in text.splitlines():
        name, _, rest = line.rpartition(",ts=")
        stamp, _, value = rest.partition(",")
        if name and stamp.isdigit():
            tags = {plain(tag): plain(text) for tag, text in parse(name)[1].items()}
            yield {"time": int(stamp) // 1_000_000, "value": float(value), **tags}
