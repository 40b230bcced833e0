"""examples/secure.toml as a process of its own: the README's walk-through as it stands, SIGHUP, and where no secret may be."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.testing.site import SiteProcess

ROOT = Path(__file__).parents[3]
README = (Path(__file__).parents[1] / "README.md").read_text()
ON_LOOPBACK = ("admin.listen=127.0.0.1:0", "tiers.site.sources.devices.listen=127.0.0.1:0")


def blocks() -> list[str]:
    section = README.partition("## A secure site, step by step")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    return tmp_path


@pytest.fixture
def site(folder: Path) -> Iterator[SiteProcess]:
    environ = {"HEADRACE_SECRETS": str(folder / "secrets")}
    with SiteProcess(ROOT / "examples" / "secure.toml", folder, ON_LOOPBACK, environ) as process:
        yield process


def shell(block: str, folder: Path, site: SiteProcess) -> str:
    """Run a block as it stands, but for the address."""
    block = block.replace("check examples/secure.toml", "check --no-ports examples/secure.toml")
    if "localhost:8443" in block:
        block = block.replace("localhost:8443", f"localhost:{port(site)}")
    done = subprocess.run(["sh", "-eu", "-c", block], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def port(site: SiteProcess) -> int:
    return int(site.wait_for_url("devices").rpartition(":")[2])


def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come"
        time.sleep(0.02)


def serial(site: SiteProcess, trust: ssl.SSLContext) -> str:
    with socket.create_connection(("127.0.0.1", port(site))) as plain, trust.wrap_socket(plain, server_hostname="localhost") as tls:
        certificate = tls.getpeercert()
        assert certificate is not None
        return str(certificate["serialNumber"])


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("curl")), reason="the walk-through uses openssl and curl")
def test_the_walk_through_happens_as_it_is_written(folder: Path, site: SiteProcess) -> None:
    certificates, tokens, run, posts, fleet, rotate, revoke = blocks()
    shell(certificates, folder, site)
    assert "itself, meter-*" in (said := shell(tokens, folder, site))
    assert "ready to run" in said
    assert run == ".venv/bin/headrace run examples/secure.toml\n"
    site.start()
    one, two, refused, other = shell(posts, folder, site).splitlines()
    assert one == '{"accepted":1,"rejected":[]}'
    assert two == '{"accepted":2,"rejected":[]}'
    assert json.loads(refused)["rejected"][0]["code"] == json.loads(other)["code"] == "not_authorized"
    assert re.search(r"rejected +0\n", shell(fleet, folder, site))

    trust = ssl.create_default_context(cafile=str(folder / "secrets/ca.pem"))
    assert site.process is not None
    before = serial(site, trust)
    shell(rotate, folder, site)
    site.process.send_signal(signal.SIGHUP)
    until(lambda: serial(site, trust) != before)

    with socket.create_connection(("127.0.0.1", port(site))) as plain, trust.wrap_socket(plain, server_hostname="localhost") as tls:
        token = (folder / "secrets/pump-7").read_text().split()[1]
        tls.sendall(
            b"GET /v1/devices/pump-7/events HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"Authorization: Bearer " + token.encode() + b"\r\n\r\n"
        )
        assert tls.recv(4096).startswith(b"HTTP/1.1 101 ")
        shell(revoke, folder, site)
        assert tls.recv(4096)[:4][2:] == (1008).to_bytes(2, "big")

    # neither the log, nor the pages that operators see, nor the config as it is shown, hold a secret
    seen = "".join([site.log.read_text(), *(site.probe(page)[1] for page in ("/components", "/metrics"))])
    words = {line.split()[1].rpartition("_")[2] for name in ("pump-7", "gateway-1", "fleet") for line in _lines(folder, name)}
    assert len(words) == 22
    assert not [word for word in words if word in seen]
    assert "PRIVATE KEY" not in seen
    assert site.metric("ingest_auth_failures_total") >= 1
    site.stop()


def _lines(folder: Path, name: str) -> list[str]:
    return (folder / "secrets" / name).read_text().splitlines()


def test_a_changed_file_is_taken_or_refused_without_a_restart(folder: Path, site: SiteProcess) -> None:
    import pki

    (folder / "secrets").mkdir()
    authority = pki.Authority(folder)
    issued = authority.server()
    trust = ssl.create_default_context(cafile=str(authority.file))
    shutil.copy(issued.certificate, folder / "secrets/server.pem")
    shutil.copy(issued.key, folder / "secrets/server.key")
    shell(".venv/bin/headrace devices token add d1 --file secrets/tokens.csv", folder, site)
    site.file = folder / "site.toml"
    text = (ROOT / "examples/secure.toml").read_text()
    site.file.write_text(text)
    site.start()
    assert site.process is not None
    begun = site.components()["devices"]["since"]

    # a table of the config changes: taken, and the address stays
    site.file.write_text(text.replace('key = "${HEADRACE', 'version_min = "1.3"\nkey = "${HEADRACE'))
    site.process.send_signal(signal.SIGHUP)
    old = ssl.create_default_context(cafile=str(authority.file))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    until(lambda: not _shakes_hands(site, old))
    assert _shakes_hands(site, trust)

    # one that cannot be: refused, and the one before goes on
    site.file.write_text(text.replace("server.pem", "nobody.pem"))
    site.process.send_signal(signal.SIGHUP)
    until(lambda: site.metric("config_reload_success") == 0)
    assert _shakes_hands(site, trust)
    assert site.components()["devices"]["status"] == "ok"
    assert site.components()["devices"]["since"] == begun, "it was never restarted"
    assert any("nobody.pem" in line.get("error", "") for line in site.lines())
    site.stop()


def _shakes_hands(site: SiteProcess, trust: ssl.SSLContext) -> bool:
    try:
        return bool(serial(site, trust))
    except (ssl.SSLError, ConnectionError):
        return False
