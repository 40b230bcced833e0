"""What a config has to say before anybody else can reach the server, and what it may change without a restart."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pki
import pytest
import websockets

from headrace import ConfigError
from headrace.check import check
from headrace_ingest_ws import IngestWs
from headrace_ingest_ws.auth.command import main as token_command
from headrace_ingest_ws.auth.options import TlsOptions, TokensOptions
from headrace_ingest_ws.config import listen_problem

TLS = TlsOptions(certificate="c.pem", key="k.pem")
TOKENS = TokensOptions(file="tokens.csv")


def config(**options: Any) -> Any:
    return IngestWs.Config(**{"auth": "none", **options})


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_loopback_needs_nothing(listen: str) -> None:
    assert listen_problem(config(listen=listen)) is None


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"])
def test_an_address_that_others_reach_needs_both_or_the_words(listen: str) -> None:
    nothing = listen_problem(config(listen=listen))
    assert nothing is not None
    assert 'auth = "none"' in nothing
    assert "in the clear" in nothing
    assert "insecure = true" in nothing
    no_tls = listen_problem(config(listen=listen, auth="tokens", tokens=TOKENS))
    assert no_tls is not None
    assert "in the clear" in no_tls
    assert "any device" not in no_tls
    no_auth = listen_problem(config(listen=listen, tls=TLS))
    assert no_auth is not None
    assert "any device" in no_auth
    assert "in the clear" not in no_auth
    assert listen_problem(config(listen=listen, auth="tokens", tokens=TOKENS, tls=TLS)) is None
    assert listen_problem(config(listen=listen, insecure=True)) is None


def test_the_server_refuses_to_open_there(kit: SimpleNamespace) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigError, match="insecure = true"):
            async with kit.running(listen="0.0.0.0:0"):
                pass

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"auth": "tokens"}, "needs the table `tokens`"),
        ({"tokens": TOKENS}, "does not use the table `tokens`"),
        ({"auth": "mtls", "tokens": TOKENS}, "does not use"),
    ],
)
def test_tables_and_auth_have_to_fit(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(**options)


SITE = """
[host]
data_dir = "{folder}/data"
[admin]
listen = "127.0.0.1:0"
[tiers.site.sources.devices]
use = "ingest_ws"
listen = "127.0.0.1:0"
{auth}
[tiers.site.outputs.live]
use = "live_ws"
listen = "127.0.0.1:0"
hold = "none"
"""


@pytest.mark.parametrize(
    ("auth", "problem"),
    [
        ('auth = "none"\nlisten_ = 1', "unknown key"),
        ('auth = "token"', "'token'; did you mean 'tokens'"),
        ('auth = "tokens"\ntokens = {}', "one of `file` and `database`, got neither"),
        ('auth = "tokens"\ntokens = {{file = "{folder}/none.csv"}}', "none.csv: no such file"),
        ('auth = "tokens"\ntokens = {{database = "nothing://user:hushhush@host/db"}}', "no driver for 'nothing'"),
        ('auth = "tokens"\ntokens = {{database = "hushhush"}}', "got text that is not one"),
        ('auth = "jwt"\njwt = {{algorithms = ["HS384"], key_file = "k"}}', "'HS384'"),
        ('auth = "jwt"\njwt = {{algorithms = ["HS256", "RS256"], key_file = "k"}}', "a key is good for one"),
        ('auth = "jwt"\njwt = {{algorithms = ["HS256"], key_file = "{folder}/short"}}', "at least 32 bytes"),
        ('auth = "none"\ntls = {{certificate = "{folder}/none.pem", key = "k"}}', "none.pem: No such file"),
        ('auth = "none"\ntls = {{certificate = "{folder}/short", key = "{folder}/short"}}', "expected a certificate and its private key"),
        ('auth = "mtls"\nmtls = {{client_ca = "x"}}', "needs the table `tls`"),
        ('auth = "mtls"\nmtls = {{client_ca = "x", san = "email:{{device}}"}}', "begin with dns: or uri:"),
    ],
)
def test_check_says_what_is_wrong_and_no_secret(tmp_path: Path, auth: str, problem: str) -> None:
    (tmp_path / "short").write_text("hushhush")
    file = tmp_path / "site.toml"
    text = auth if "{{" not in auth else auth.format(folder=tmp_path)
    file.write_text(SITE.format(folder=tmp_path, auth=text))
    findings = [finding.text for finding in check(file) if not finding.ok]
    assert [text for text in findings if problem in text], findings
    assert "hushhush" not in "\n".join(findings)


def test_check_refuses_an_open_address_unless_the_config_says_so(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(SITE.format(folder=tmp_path, auth='auth = "none"'))
    everywhere = "tiers.site.sources.devices.listen=0.0.0.0:0"
    (problem,) = [finding.text for finding in check(file, [everywhere]) if not finding.ok]
    assert "could write as any device" in problem
    assert "in the clear" in problem
    assert "insecure = true" in problem
    assert [finding for finding in check(file, [everywhere, "tiers.site.sources.devices.insecure=true"]) if not finding.ok] == []


def test_without_its_libraries_only_what_needs_them_is_refused(tmp_path: Path) -> None:
    code = """
import sys
for name in ("jwt", "cryptography", "sqlalchemy"):
    sys.modules[name] = None
from pathlib import Path
from headrace.check import check
folder = Path(sys.argv[1])
for auth in sys.argv[2:]:
    file = folder / "site.toml"
    file.write_text(Path(sys.argv[1], "template").read_text().replace("AUTH", auth))
    print([finding.text for finding in check(file) if not finding.ok])
"""
    (tmp_path / "template").write_text(SITE.format(folder=tmp_path, auth="AUTH"))
    auths = [
        'auth = "none"',
        'auth = "jwt"\njwt = {algorithms = ["HS256"], key_file = "k"}',
        'auth = "tokens"\ntokens = {database = "sqlite://"}',
        'auth = "mtls"\nmtls = {client_ca = "x"}\ntls = {certificate = "c", key = "k"}',
    ]
    command = [sys.executable, "-c", code, str(tmp_path), *auths]
    none, jwt, tokens, mtls = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert none == "[]"
    assert "PyJWT" in jwt or "jwt" in jwt
    assert "SQLAlchemy" in tokens
    assert "cryptography" in mtls


# --- a changed config ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("each_loop")
@pytest.mark.parametrize("each_loop", ["uvloop-c"], indirect=True)
def test_other_credentials_are_taken_without_a_restart(kit: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    authority = pki.Authority(tmp_path)
    first, second = authority.server("first"), authority.server("second")
    trust = ssl.create_default_context(cafile=authority.file)
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert token_command(["add", "d1", "--file", str(files[0])]) == 0
    stays = capsys.readouterr().out.split()[-1]
    files[1].write_bytes(files[0].read_bytes())
    assert token_command(["add", "d2", "--file", str(files[0])]) == 0
    goes = capsys.readouterr().out.split()[-1]

    def tls(issued: Any) -> TlsOptions:
        return TlsOptions(certificate=str(issued.certificate), key=str(issued.key))

    def bearer(token: str) -> dict[str, Any]:
        return {"ssl": trust, "additional_headers": {"Authorization": f"Bearer {token}"}}

    async def scenario() -> None:
        options = {"auth": "tokens", "tokens": {"file": str(files[0])}}
        secure = {"certificate": str(first.certificate), "key": str(first.key)}
        async with (
            kit.running(**options, tls=secure) as site,
            site.connect("d1", **bearer(stays)) as one,
            site.connect("d2", **bearer(goes)) as two,
        ):
            component = site.component
            new = msgspec.structs.replace(component.config, tls=tls(second), tokens=TokensOptions(file=str(files[1])))
            assert await component.reload(new)
            await asyncio.wait_for(two.wait_closed(), 10)
            assert two.close_code == 1008
            async with site.connect("d1", **bearer(stays)) as late:
                assert int(late.transport.get_extra_info("peercert")["serialNumber"], 16) == second.x509.serial_number
            await one.send("{}")
            await kit.receive_until_ack(one, 1)

            with pytest.raises(ConfigError, match="none: No such file"):
                await component.reload(msgspec.structs.replace(new, tls=TlsOptions(certificate="none", key="none")))
            with pytest.raises(ConfigError, match=r"none\.csv"):
                await component.reload(msgspec.structs.replace(new, tokens=TokensOptions(file="none.csv")))
            await one.send("{}")
            await kit.receive_until_ack(one, 2)
            with pytest.raises(websockets.InvalidStatus, match="401"):
                await site.connect("d2", **bearer(goes))

            assert not await component.reload(msgspec.structs.replace(new, tls=None))
            assert not await component.reload(msgspec.structs.replace(new, auth="none", tokens=None))
            assert not await component.reload(msgspec.structs.replace(new, window_messages=5))

    asyncio.run(scenario())
