"""The routes for dashboards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from akumuli_bench import T0_US, numbers, one_life, sink
from akumuli_real import Akumulid
from akumuli_standin import StandIn

from headrace.testing import run

T0_MS = T0_US // 1000


def get(component: Any, path: str) -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        app = web.Application()
        component.register_routes(app=app)
        async with TestClient(TestServer(app)) as client, client.get(path) as answer:
            return answer.status, await answer.json()

    return run(ask())


def check(server: Any, folder: Path) -> None:
    component = sink(server, folder, routes=True)
    one_life(component, numbers([1.0, 3.0, 5.0], 1, [0, 30_000_000, 60_000_000], site="Bär's"))
    assert get(component, "/akumuli/metrics") == (200, ["n"])
    span = f"metric=n&from={T0_MS}&to={T0_MS + 120_000}&step=1m"
    tags = {"device": "a", "class": "unknown", "type": "unknown", "site": "Bär's"}
    means = [{"time": T0_MS, "value": 2.0, **tags}, {"time": T0_MS + 60_000, "value": 5.0, **tags}]
    assert get(component, f"/akumuli/series?{span}") == (200, means)
    assert get(component, f"/akumuli/series?{span}&device=a&site=B%C3%A4r%27s") == (200, means)
    assert get(component, f"/akumuli/series?{span}&func=max")[1][0]["value"] == 3.0
    assert get(component, f"/akumuli/series?{span.replace('metric=n', 'metric=no')}") == (200, [])


def test_series_come_as_rows_with_the_names_of_the_events(tmp_path: Path) -> None:
    with StandIn() as server:
        check(server, tmp_path)


@pytest.mark.skipif(shutil.which("akumulid") is None, reason="no akumulid on the PATH")
def test_series_come_as_rows_from_a_real_server(tmp_path: Path) -> None:
    with Akumulid(tmp_path / "akumuli") as server:
        check(server, tmp_path)


def test_what_is_asked_wrongly_is_told(tmp_path: Path) -> None:
    with StandIn() as server:
        component = sink(server, tmp_path, routes=True)
        good = {"metric": "n", "from": "1", "to": "2"}
        for wrong in ({"metric": ""}, {"from": "yesterday"}, {"to": "-1"}, {"step": "1y"}, {"func": "median"}):
            path = "/akumuli/series?" + "&".join(f"{name}={value}" for name, value in {**good, **wrong}.items())
            status, answer = get(component, path)
            assert status == 400
            assert answer["error"].startswith(next(iter(wrong)))
        server.stop()
        status, answer = get(component, "/akumuli/metrics")
        assert status == 503
        assert "no answer from Akumuli" in answer["error"]
