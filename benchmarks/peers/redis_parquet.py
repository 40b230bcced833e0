"""What people put behind aiohttp_redis.py: a consumer of the Redis stream that writes partitioned Parquet.

    python peers/redis_parquet.py REDIS_PORT DEVICES_CSV FOLDER

The good version of it: large reads in a consumer group, msgspec, the context from a dictionary, one Arrow table for each flush,
zstd, a file per class, synced before the entries are acknowledged and trimmed. It ends at SIGTERM, when the stream is empty.
"""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import redis

READ_ROWS = 10_000
FLUSH_S = 2.0
FLUSH_ROWS = 250_000


class Consumer:
    """Reads, joins, writes."""

    def __init__(self, redis_port: int, devices: Path, folder: Path) -> None:
        self.redis = redis.Redis(port=redis_port)
        self.folder = folder
        with devices.open(newline="") as rows:
            self.context = {row.pop("device").encode(): row for row in csv.DictReader(rows)}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.ids: list[bytes] = []
        self.files = self.written = 0
        self.ending = False

    def run(self) -> None:
        self.redis.xgroup_create("events", "parquet", id="0", mkstream=True)
        print("READY", flush=True)
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        due = time.monotonic() + FLUSH_S
        while True:
            found = self.redis.xreadgroup("parquet", "one", {"events": ">"}, count=READ_ROWS, block=50)
            for entry_id, fields in found[0][1] if found else ():
                device = fields[b"device"]
                context = self.context.get(device, {})
                readings = decode(fields[b"payload"])
                row = {"device": device.decode(), "received": int(entry_id.partition(b"-")[0]), "readings": readings, "context": context}
                self.rows.setdefault(context.get("class", "unknown"), []).append(row)
                self.ids.append(entry_id)
            if len(self.ids) >= FLUSH_ROWS or time.monotonic() >= due or (self.ending and not found):
                self.flush()
                due = time.monotonic() + FLUSH_S
            if self.ending and not found:
                print(self.written, flush=True)
                return

    def flush(self) -> None:
        for kind, rows in self.rows.items():
            folder = self.folder / f"class={kind}"
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{self.files}.parquet").open("wb") as file:
                pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            self.files += 1
        for first in range(0, len(self.ids), READ_ROWS):
            self.redis.xack("events", "parquet", *self.ids[first : first + READ_ROWS])
        if self.ids:
            self.redis.xtrim("events", minid=self.ids[-1], approximate=True)
        self.written += len(self.ids)
        self.rows, self.ids = {}, []


def main() -> None:
    consumer = Consumer(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

    def end(number: int, frame: object) -> None:
        consumer.ending = True

    signal.signal(signal.SIGTERM, end)
    consumer.run()


if __name__ == "__main__":
    main()
