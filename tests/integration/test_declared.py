"""A site that declares its readings: types and units stand in the lake's files, whatever devices send first."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq

from headrace.testing.site import SiteProcess

SENT: list[tuple[str, dict[str, Any]]] = [
    ("d1", {"temperature": "warm", "cycles": 2.5}),
    ("d1", {"temperature": 20.5, "cycles": 2**60 + 1}),
    ("d2", {"temperature": 250}),
]


def test_types_and_units_stand_in_the_files_of_each_class(site: SiteProcess, tmp_path: Path, lake: Any) -> None:
    (tmp_path / "data").mkdir()
    with sqlite3.connect(tmp_path / "data" / "context.db") as database:
        database.execute("create table devices (device text primary key, class text, type text, site text, latitude real, longitude real)")
        database.executemany("insert into devices (device, class) values (?, ?)", [("d1", "thermostat"), ("d2", "cold-store")])
    site.overrides += [
        "schema.thermostat.cycles.type=int64", "schema.cold-store.temperature.unit=K", "tiers.site.outputs.lake.flush_interval_s=0.2",
    ]  # fmt: skip
    site.start()

    async def send() -> None:
        async with aiohttp.ClientSession() as http:
            for device, readings in SENT:
                async with http.post(f"{site.wait_for_url('devices')}/v1/devices/{device}/events", json=readings) as answer:
                    assert answer.status == 200

    asyncio.run(send())
    site.stop()
    found = lake.query('select device, readings.temperature, readings.cycles, readings."_other" from {lake} order by position')
    assert found == [("d1", None, None, '{"temperature":"warm","cycles":2.5}'), ("d1", 20.5, 2**60 + 1, None), ("d2", 250.0, None, None)]
    units = {
        name: pq.read_schema(file).field("readings").type.field("temperature").metadata
        for name in ("thermostat", "cold-store")
        for file in sorted((tmp_path / "data" / "lake").glob(f"class={name}/**/*.parquet"))
        if pq.read_schema(file).field("readings").type.get_field_index("temperature") >= 0
    }
    assert units == {name: {b"type": b"float64", b"unit": unit} for name, unit in (("thermostat", b"Cel"), ("cold-store", b"K"))}
