"""JSON Web Tokens: which are believed, which not, and when a connection ends with its own."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, RSAAlgorithm

from headrace.log import Log
from headrace_ingest_ws.auth.identity import NotAuthorized, NotReady
from headrace_ingest_ws.auth.jwt_guard import JwtGuard
from headrace_ingest_ws.auth.jwt_keys import KeyFile
from headrace_ingest_ws.auth.options import JwtOptions
from headrace_ingest_ws.auth.rereading import Unreadable

SECRET = b"0123456789abcdef0123456789abcdef"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
PRIVATE = {"HS256": SECRET, "RS256": RSA, "ES256": EC}


def pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


def private_pem(key: Any) -> bytes:
    private: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private


FILES = {"HS256": SECRET + b"\n", "RS256": pem(RSA), "ES256": pem(EC)}


def signed(algorithm: str = "ES256", key: Any = None, headers: dict[str, Any] | None = None, **claims: Any) -> str:
    claims = {"sub": "d1", "exp": time.time() + 3600, **claims}
    claims = {name: value for name, value in claims.items() if value is not None}
    token: str = jwt.encode(claims, key or PRIVATE[algorithm], algorithm, headers)
    return token


def guard_for(folder: Path, algorithm: str = "ES256", data: bytes | None = None, **options: Any) -> JwtGuard:
    """A guard that has read its key file."""
    file = folder / "key"
    file.write_bytes(FILES[algorithm] if data is None else data)
    return read_guard(JwtOptions(algorithms=[algorithm], key_file=str(file), **options))  # type: ignore[list-item]


def read_guard(options: JwtOptions) -> JwtGuard:
    async def call(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    guard = JwtGuard(options, SimpleNamespace(call_blocking=call, log=Log("test")))  # type: ignore[arg-type]
    asyncio.run(guard.refresh())
    return guard


def why(guard: JwtGuard, token: str) -> str:
    with pytest.raises(NotAuthorized) as refused:
        guard.identify_token(token)
    assert refused.value.status == 401
    assert not [part for part in token.split(".") if len(part) > 12 and part in str(refused.value)]
    return refused.value.why


@pytest.mark.parametrize("algorithm", ["HS256", "RS256", "ES256"])
def test_a_signed_token_names_its_device_until_it_expires(tmp_path: Path, algorithm: str) -> None:
    exp = int(time.time()) + 100
    identity = guard_for(tmp_path, algorithm, skew_s=7).identify_token(signed(algorithm, exp=exp, jti="t-1"))
    assert (identity.name, identity.gateway, identity.expires, identity.credential) == ("d1", None, exp + 7.0, "t-1")


def test_what_is_wrong_with_a_token_has_a_reason(tmp_path: Path) -> None:
    guard = guard_for(tmp_path, audience="headrace", issuer="https://id.example", skew_s=10)
    good: dict[str, Any] = {"aud": "headrace", "iss": "https://id.example"}
    assert guard.identify_token(signed(**good)).name == "d1"
    assert guard.identify_token(signed(**{**good, "aud": ["other", "headrace"]})).name == "d1"
    assert guard.identify_token(signed(**good, exp=time.time() - 5)).name == "d1", "within the skew"
    assert why(guard, signed(**good, exp=time.time() - 20)) == "expired"
    assert why(guard, signed(**good, exp=None)) == "claims"
    assert why(guard, signed(**good, nbf=time.time() + 60)) == "claims"
    assert why(guard, signed(**{**good, "aud": "other"})) == "claims"
    assert why(guard, signed(**{**good, "aud": None})) == "claims"
    assert why(guard, signed(**{**good, "iss": "https://evil.example"})) == "claims"
    assert why(guard, signed(**{**good, "iss": None})) == "claims"
    assert why(guard, signed(**good, sub=None)) == "claims"
    assert why(guard, signed(**good, key=ec.generate_private_key(ec.SECP256R1()))) == "signature"
    head, _, rest = signed(**good).partition(".")
    claims = base64.urlsafe_b64encode(json.dumps({**good, "sub": "d2", "exp": time.time() + 9}).encode()).decode().rstrip("=")
    assert why(guard, f"{head}.{claims}.{rest.partition('.')[2]}") == "signature"
    assert why(guard, "x") == "malformed"


def test_no_algorithm_but_the_keys_own_is_taken(tmp_path: Path) -> None:
    guard = guard_for(tmp_path)
    assert why(guard, signed("RS256")) == "signature"
    assert why(guard, signed("HS256")) == "signature"
    unsigned = jwt.encode({"sub": "d1", "exp": time.time() + 60}, None, "none")
    assert why(guard, unsigned) == "signature"
    # the classic: the public key, which everybody has, taken for a shared secret
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    claims = base64.urlsafe_b64encode(json.dumps({"sub": "d1", "exp": time.time() + 60}).encode()).decode().rstrip("=")
    mac = HMACAlgorithm(HMACAlgorithm.SHA256).sign(f"{header}.{claims}".encode(), pem(EC))
    assert why(guard, f"{header}.{claims}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}") == "signature"


def test_an_audience_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    assert why(guard_for(tmp_path), signed(aud="somebody else")) == "claims"


def test_other_claims_may_name_the_device_and_the_pattern(tmp_path: Path) -> None:
    guard = guard_for(tmp_path, device_claim="device_id", gateway_claim="may_write")
    identity = guard.identify_token(signed(sub=None, device_id="gw", may_write=["m-*", "pump"]))
    assert identity.name == "gw"
    assert identity.gateway is not None
    assert [name for name in ("m-1", "pump", "x") if identity.gateway.allow(name)] == ["m-1", "pump"]
    assert guard.identify_token(signed(device_id="gw", may_write="m-*")).gateway is not None
    for bad in ([], "", 7, ["m-*", 7], [""], {}, "a\tb"):
        assert why(guard, signed(device_id="gw", may_write=bad)) == "claims"


@pytest.mark.parametrize(
    ("algorithm", "data"),
    [
        ("HS256", b"too short"),
        ("HS256", pem(EC)),
        ("RS256", pem(EC)),
        ("ES256", pem(RSA)),
        ("ES256", pem(ec.generate_private_key(ec.SECP384R1()))),
        ("RS256", pem(rsa.generate_private_key(65537, 1024))),
        ("ES256", private_pem(EC)),
        ("ES256", b""),
        ("ES256", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ],
    ids=count(),  # the keys are random: as names of tests they would differ from worker to worker
)
def test_a_key_that_does_not_do_is_said_and_nobody_is_let_in(tmp_path: Path, algorithm: str, data: bytes) -> None:
    guard = guard_for(tmp_path, algorithm, data)
    assert "expected" in guard.problem
    assert not [line for line in data.decode().splitlines() if line in guard.problem]
    with pytest.raises(NotReady):
        guard.identify_token(signed())


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    kinds: dict[type, Any] = {bytes: HMACAlgorithm, rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind = next(kind for of, kind in kinds.items() if isinstance(key, of))
    members = kind.to_jwk(key if isinstance(key, bytes) else key.public_key(), as_dict=True)
    return {**members, **({} if kid is None else {"kid": kid}), **more}


def test_a_key_set_is_asked_by_kid(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    strange = [{"kty": "OKP", "crv": "Ed25519", "x": "AA"}, jwk(EC, "enc", use="enc"), {"kty": 7}, jwk(RSA, "r512", alg="RS512")]
    file.write_text(json.dumps({"keys": [jwk(RSA, "r"), jwk(EC, "e", use="sig", alg="ES256"), jwk(SECRET, "h"), *strange]}))
    guard = read_guard(JwtOptions(algorithms=["RS256", "ES256"], jwks_file=str(file)))
    assert guard.problem == ""
    assert guard.identify_token(signed("RS256", headers={"kid": "r"})).name == "d1"
    assert guard.identify_token(signed("ES256", headers={"kid": "e"})).name == "d1"
    assert why(guard, signed("HS256", headers={"kid": "h"})) == "unknown", "not an algorithm that is taken"
    assert why(guard, signed("ES256", headers={"kid": "enc"})) == "unknown"
    assert why(guard, signed("ES256", headers={"kid": "r"})) == "signature"
    assert why(guard, signed("ES256", headers={"kid": "nobody's"})) == "unknown"
    assert why(guard, signed("ES256")) == "unknown", "without a kid there is no choice among several"


BAD_KEYS: list[list[Any]] = [
    [],
    [7],
    [{"kty": "EC", "crv": "P-256", "x": "A", "y": "B"}],
    [jwk(EC, "a"), jwk(RSA, "a")],
    [{**jwk(EC, "a"), "kid": 7}],
    [ECAlgorithm.to_jwk(EC, as_dict=True)],  # the private key
]


def test_keys_that_change_their_names_make_another_set(tmp_path: Path) -> None:
    first, second = jwk(EC, "a"), jwk(ec.generate_private_key(ec.SECP256R1()), "b")
    file = tmp_path / "keys"
    sets = []
    for names in (("a", "b"), ("a", "b"), ("b", "a")):
        file.write_text(json.dumps({"keys": [{**key, "kid": kid} for key, kid in zip((first, second), names, strict=True)]}))
        sets.append(KeyFile(JwtOptions(algorithms=["ES256"], jwks_file=str(file))).read())
    assert sets[0] == sets[1]
    assert sets[0] != sets[2]


@pytest.mark.parametrize("text", ["", "{}", '{"keys":' + "[" * 3000, *(json.dumps({"keys": keys}) for keys in BAD_KEYS)], ids=count())
def test_a_bad_key_set_is_no_key_set(tmp_path: Path, text: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(text)
    with pytest.raises(Unreadable, match="expected"):
        KeyFile(JwtOptions(algorithms=["RS256", "ES256"], jwks_file=str(file))).read()


@settings(deadline=None)
@given(st.one_of(st.text(max_size=80), st.lists(st.binary(max_size=40), min_size=3, max_size=3), st.integers(1, 6000)))
def test_any_bytes_at_all_are_refused_and_nothing_else(tmp_path_factory: Any, made: Any) -> None:
    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).decode().rstrip("=")

    if isinstance(made, int):
        token = f"{encoded(b'[' * made)}.{encoded(b'{}')}.x"
    elif isinstance(made, list):
        token = ".".join([encoded(b'{"alg":"ES256"' + made[0] + b"}"), encoded(made[1]), encoded(made[2])])
    else:
        token = made
    with pytest.raises(NotAuthorized):
        GUARDS.setdefault("one", guard_for(tmp_path_factory.getbasetemp())).identify_token(token)


GUARDS: dict[str, JwtGuard] = {}


@pytest.mark.parametrize("exp", ["soon", 1e300, -1, True, [], "Infinity", pytest.param(10**400, id="huge")])
def test_a_strange_end_of_life_is_refused_or_harmless(tmp_path: Path, exp: Any) -> None:
    guard = guard_for(tmp_path)
    token = signed(exp=float("inf") if exp == "Infinity" else exp)
    if exp == 1e300:
        assert guard.identify_token(token).expires == pytest.approx(1e300)
    else:
        assert why(guard, token) in ("malformed", "expired", "claims")


# --- a real server ---------------------------------------------------------------------------------------------------


def bearer(token: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {token}"}}


@pytest.mark.usefixtures("each_loop")
def test_a_connection_ends_when_its_token_expires(kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace_ingest_ws.auth.admission.ASK_S", 0.02)
    (tmp_path / "key").write_bytes(pem(EC))
    options = {"algorithms": ["ES256"], "key_file": str(tmp_path / "key"), "skew_s": 0.0}

    async def scenario() -> None:
        async with kit.running(auth="jwt", jwt=options) as site:
            begun = time.time()
            async with site.connect(**bearer(signed(exp=int(begun) + 2))) as ws, site.connect("d2", **bearer(signed(sub="d2"))) as other:
                await ws.send("{}")
                await kit.receive_until_ack(ws, 1)
                await asyncio.wait_for(ws.wait_closed(), 10)
                assert (ws.close_code, ws.close_reason) == (1008, "credentials expired")
                assert time.time() >= int(begun) + 2
                await other.send("{}")
                await kit.receive_until_ack(other, 1)
            with pytest.raises(websockets.InvalidStatus, match="401"):
                await site.connect(**bearer(signed(exp=int(begun) + 2)))
            assert site.metric("ingest_auth_failures_total", reason="expired") == 1

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
def test_a_new_key_set_takes_in_new_tokens_and_ends_those_of_a_withdrawn_key(kit: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"

    def write(*keys: dict[str, Any]) -> None:
        file.write_text(json.dumps({"keys": keys}))

    write(jwk(EC, "old"))
    newer = ec.generate_private_key(ec.SECP256R1())
    old, new = signed(headers={"kid": "old"}), signed(key=newer, headers={"kid": "new"})

    async def scenario() -> None:
        options = {"algorithms": ["ES256"], "jwks_file": str(file)}
        async with kit.running(auth="jwt", jwt=options) as site, site.connect(**bearer(old)) as ws:
            write(jwk(EC, "old"), jwk(newer, "new"))
            await site.component.reread()
            async with site.connect(**bearer(new)) as other:
                await asyncio.sleep(0)
                assert ws.state is other.state
                write(jwk(newer, "new"))
                await site.component.reread()
                await asyncio.wait_for(ws.wait_closed(), 10)
                assert (ws.close_code, ws.close_reason) == (1008, "credentials revoked")
                await other.send("{}")
                await kit.receive_until_ack(other, 1)
                file.write_text("{")
                await site.component.reread()
                assert site.component.health().status == "degraded"
                async with site.connect(**bearer(new)):
                    pass

    asyncio.run(scenario())


@pytest.mark.usefixtures("each_loop")
def test_a_key_file_that_is_replaced_ends_its_connections_without_a_signal(kit: SimpleNamespace, tmp_path: Path) -> None:
    """With the real pace of looking: within the 5 s that the docs promise."""
    file, newer = tmp_path / "key", ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(pem(EC))

    async def scenario() -> None:
        options = {"algorithms": ["ES256"], "key_file": str(file)}
        async with kit.running(auth="jwt", jwt=options) as site, site.connect(**bearer(signed())) as ws:
            file.write_bytes(pem(newer))
            await asyncio.wait_for(ws.wait_closed(), 5.0)
            assert (ws.close_code, ws.close_reason) == (1008, "credentials revoked")
            async with site.connect(**bearer(signed(key=newer))) as again:
                await again.send("{}")
                await kit.receive_until_ack(again, 1)

    asyncio.run(scenario())
