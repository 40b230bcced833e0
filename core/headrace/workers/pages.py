"""The admin pages of a site with workers: what all processes say, as one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from prometheus_client import generate_latest

from headrace.metrics import Metrics
from headrace.workers.asking import Answer
from headrace.workers.merging import MergedMetrics
from headrace.workers.process import WorkerProcess


class Pages:
    """Asks all workers at once, each for a bounded time."""

    def __init__(self, workers: Sequence[WorkerProcess], metrics: Metrics) -> None:
        self._workers, self._metrics = workers, metrics
        self._merged = MergedMetrics()

    async def metrics(self) -> bytes:
        """The workers' metrics and the supervisor's own, merged."""
        lives: dict[str, int] = {}
        for worker, answer in await self._asked("/metrics", lives):
            if answer is not None and answer[0] == 200:
                self._merged.take(worker.name, lives[worker.name], answer[1].decode())
            else:
                self._merged.away(worker.name)
        own = self._metrics
        self._merged.take("", 0, generate_latest(own.registry).decode())
        return self._merged.page()

    async def not_live(self) -> list[str]:
        """Why a restart of the whole would help; a worker that is being restarted is no reason."""
        return [
            f"{worker.name}: {line}"
            for worker, answer in await self._asked("/livez")
            for line in _reasons(worker, answer)
            if worker.state == "running"
        ]

    async def not_ready(self) -> list[str]:
        """Why devices should not be sent here. Former workers take no devices."""
        return [
            f"{worker.name}: {line}"
            for worker, answer in await self._asked("/readyz")
            for line in _reasons(worker, answer)
            if not worker.process.former
        ]

    async def components(self, host: str) -> dict[str, Any]:
        """Every worker's components and queues, with its name."""
        page: dict[str, Any] = {"host": host, "components": [], "queues": [], "workers": []}
        for worker, answer in await self._asked("/components"):
            row = {"worker": worker.name, "tiers": worker.process.tiers, "state": worker.state, "reason": worker.reason}
            page["workers"].append({**row, "former": worker.process.former, "pid": worker.pid, "starts": worker.life})
            if answer is None or answer[0] != 200:
                continue
            found = json.loads(answer[1])
            for kind in ("components", "queues"):
                page[kind] += [{**one, "worker": worker.name} for one in found[kind]]
        return page

    async def one(self, request: web.Request) -> web.Response:
        """A page of one worker: `/workers/{worker}/{page}`."""
        name = request.match_info["worker"]
        worker = next((worker for worker in self._workers if worker.name == name), None)
        if worker is None:
            known = ", ".join(worker.name for worker in self._workers)
            return web.Response(status=404, text=f"no worker {name!r}; there are {known}\n")
        answer = await worker.ask(f"/{request.match_info['page']}")
        if answer is None:
            return web.Response(status=503, text=f"{worker.reason or 'no answer'}\n")
        status, body, kind = answer
        return web.Response(status=status, body=body, headers={"Content-Type": kind})

    async def _asked(self, path: str, lives: dict[str, int] | None = None) -> list[tuple[WorkerProcess, Answer]]:
        async def ask(worker: WorkerProcess) -> Answer:
            if lives is not None:
                lives[worker.name] = worker.life  # an answer is always of the life in which it was asked for
            return await worker.ask(path)

        return list(zip(self._workers, await asyncio.gather(*map(ask, self._workers)), strict=True))


def _reasons(worker: WorkerProcess, answer: Answer) -> list[str]:
    if worker.state == "ended":
        return []
    if answer is None:
        return [worker.reason or "does not answer"]
    return answer[1].decode().splitlines() if answer[0] != 200 else []
