"""The addresses that a site's workers listen on together, held by the supervisor for as long as it lives."""

from __future__ import annotations

import socket
from typing import NamedTuple

from headrace.addresses import address_of, hold
from headrace.config import Site
from headrace.workers.plan import Process


class Held(NamedTuple):
    """One address: the option as the config has it, the host, and the socket that keeps the port."""

    option: str
    host: str
    socket: socket.socket


class Ports:
    """Holds the option `listen` of every source of a tier with workers."""

    def __init__(self) -> None:
        self._held: dict[str, Held] = {}  # by the entry's path

    def hold(self, site: Site, process: Process) -> None:
        """Hold the addresses of this process's sources, where they are not held yet; OSError for one that is taken."""
        if process.workers == 1:
            return
        for entry in (entry for tier in process.tiers for entry in site.tiers[tier].sources.values()):
            option = entry.options.get("listen")
            address, held = address_of(option), self._held.get(entry.path)
            if address is None or (held is not None and held.option == option):
                continue
            try:
                taken = hold(*address)
            except OSError as error:
                raise OSError(error.errno, f"{entry.path}.listen: {option} cannot be listened on: {error.strerror or error}") from error
            if held is not None:
                held.socket.close()
            self._held[entry.path] = Held(str(option), address[0], taken)

    def overrides(self, process: Process) -> list[str]:
        """What makes port 0 the same free port for every worker."""
        return [
            f'{path}.listen="{held.option.rpartition(":")[0]}:{held.socket.getsockname()[1]}"'
            for path, held in self._held.items()
            if path.split(".")[1] in process.tiers and address_of(held.option) == (held.host, 0)
        ]

    def close(self) -> None:
        for held in self._held.values():
            held.socket.close()
        self._held.clear()
