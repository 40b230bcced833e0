#!/usr/bin/env python3
"""In place of akumulid for the tests of start.sh: notes how it is started and ended, and has its weakness with signals."""

import os
import re
import signal
import socket
import sys
import threading
from pathlib import Path

config = sys.argv[sys.argv.index("--config") + 1]
text = Path(config).read_text()
folder = Path(re.search(r"^path=(.*)$", text, re.M)[1])
notes = folder / "notes"
sections = "+".join(re.findall(r"^\[(\w+)\]", text, re.M))


def note(line: str) -> None:
    with notes.open("a") as file:
        file.write(f"{line}\n")


if "--create" in sys.argv:
    (folder / "db.akumuli").touch()
    note("create")
    sys.exit(0)

starts = sum(line.startswith("start") for line in notes.read_text().splitlines())
note(f"start {sections}")
trouble = os.environ.get("FAKE_TROUBLE", "") if not starts else ""
if trouble == "dies":
    note("died")
    sys.exit(7)

ended = threading.Event()
signals = 0


def on_signal(*_: object) -> None:
    global signals
    signals += 1
    if trouble == "deaf" and signals == 1:
        note("missed a signal")
        return
    ended.set()


if trouble != "unclean":  # else the signal ends it at once, before it could commit anything
    signal.signal(signal.SIGTERM, on_signal)
for section in ("HTTP", "TCP"):
    if port := re.search(rf"^\[{section}\]\nport=(\d+)", text, re.M):
        server = socket.create_server(("127.0.0.1", int(port[1])))

        def serve(server: socket.socket = server, section: str = section) -> None:
            while True:
                client, _ = server.accept()
                if section == "HTTP":
                    client.recv(1000)
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\nAkumuli fake")
                else:
                    data = b""
                    while part := client.recv(1000):
                        data += part
                    note(f"received {data.splitlines()[0].decode()}")
                client.close()

        threading.Thread(target=serve, daemon=True).start()
while not ended.wait(0.05):
    pass
note("clean stop")
