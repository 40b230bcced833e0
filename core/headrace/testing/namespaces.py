"""Hosts of their own on one machine: Linux network namespaces, joined by a cable that can be pulled. Needs root and iproute2.

Nothing of the machine's own network is touched: both ends of the cable lie in namespaces that this module makes, with addresses of
192.0.2.0/24 (RFC 5737: for documentation), and both are gone afterwards.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_CABLE: Final = "cable0"


def unavailable() -> str:
    """Why there can be no namespaces here; empty when there can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (Debian: apt-get install iproute2)"
    probe = f"headrace-{secrets.token_hex(4)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"this machine allows no network namespaces: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


class Hosts:
    """Two hosts, `near` at 192.0.2.1 and `far` at 192.0.2.2 and 192.0.2.3, and a cable between them. A context manager."""

    near_address: Final = "192.0.2.1"
    far_address: Final = "192.0.2.2"
    other_far_address: Final = "192.0.2.3"

    def __enter__(self) -> Hosts:
        name = secrets.token_hex(4)
        self.near, self.far = f"headrace-{name}-near", f"headrace-{name}-far"
        for host in (self.near, self.far):
            _ip("netns", "add", host)
        _ip("link", "add", _CABLE, "netns", self.near, "type", "veth", "peer", "name", _CABLE, "netns", self.far)
        for host, addresses in ((self.near, [self.near_address]), (self.far, [self.far_address, self.other_far_address])):
            for address in addresses:
                _ip("-n", host, "address", "add", f"{address}/24", "dev", _CABLE)
            for device in ("lo", _CABLE):
                _ip("-n", host, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)

    def pull(self) -> None:
        """Pull the cable: whatever either side sends is lost from now on, and nobody is told."""
        # at the far end, so that the near one keeps its address and its routes
        _ip("-n", self.far, "link", "set", _CABLE, "down")

    def plug(self) -> None:
        """Plug it in again."""
        _ip("-n", self.far, "link", "set", _CABLE, "up")

    @staticmethod
    def on(host: str, call: Callable[[], T]) -> T:
        """Run `call` on that host: sockets that it opens, and processes that it starts, are there. Blocking."""
        result: list[Any] = []

        def work() -> None:
            try:
                with Path(f"/run/netns/{host}").open() as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
                result.extend((call(), None))
            except BaseException as error:
                result.extend((None, error))

        # a namespace belongs to a thread: one that ends with the call takes nothing with it
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        value, error = result
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
