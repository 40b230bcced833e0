"""CURVE keys in files: the pair of this end, and the public keys of those who may come in.

Keys are written as 40 characters of Z85, as every binding of libzmq takes them. A secret is in one file of its own
(`NAME.key`, in the form of pyzmq's and czmq's certificates), and in no text that anybody prints.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
import zmq.auth
from zmq.utils import z85

KEY_CHARS: Final = 40
#: Bytes of a file of public keys; some 100,000 of them.
ALLOWED_BYTES_MAX: Final = 8 << 20
SECRET_MODE: Final = 0o600


#: What to do about a key that cannot be used.
NEW_KEYS: Final = "make keys with `headrace keys new NAME`"


class KeysError(Exception):
    """A key or a file of keys cannot be used: what was expected, what came, where, what to do. Never the secret.

    `option` is the config's option that names it, where there is one.
    """

    def __init__(self, expected: str, came: str, hint: str = NEW_KEYS) -> None:
        self.expected, self.came, self.hint, self.option = expected, came, hint, ""
        super().__init__(f"expected {expected}, got {came}" + (f"; {hint}" if hint else ""))


@dataclass(frozen=True, slots=True)
class Pair:
    """The two halves of one end's key, in Z85."""

    public: bytes
    secret: bytes = field(repr=False)


def new_pair() -> Pair:
    """A pair whose public half can stand in TOML, in a shell's quotes and at the start of a line as it is."""
    while True:
        public, secret = zmq.curve_keypair()
        if not set(public) & set(b"$#{}") and not public.startswith(b"-"):  # one pair in seven
            return Pair(public, secret)


def write_pair(pair: Pair, name: str, folder: Path) -> tuple[Path, Path]:
    """Write NAME.key (only its owner may read it) and NAME.pub; KeysError when one of them is there already."""
    secret_file, public_file = folder / f"{name}.key", folder / f"{name}.pub"
    text = (
        f"# headrace: the key of {name}. It is secret; {public_file.name} has the half that others may see.\n"
        f'curve\n    public-key = "{pair.public.decode()}"\n    secret-key = "{pair.secret.decode()}"\n'
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _create(secret_file, text, SECRET_MODE)
        _create(public_file, f"{pair.public.decode()} {name}\n", 0o644)
    except FileExistsError as error:
        raise KeysError("a new file", f"{error.filename}, which is there already", "take another name, or move it away") from error
    except OSError as error:
        raise KeysError("a folder to write to", f"{error.filename}: {error.strerror}", "") from error
    return secret_file, public_file


def _create(path: Path, text: str, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)


def read_pair(path: Path) -> Pair:
    """The pair in a secret file. KeysError says why it is none."""
    expected = f"a secret key in {path}"
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        # the library's own text for a missing file is its name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else ("no key" if path.exists() else "no such file")
        raise KeysError(expected, reason) from error
    if secret is None:
        raise KeysError(expected, "the public half only")
    try:
        fits = zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError) as error:
        raise KeysError(expected, f"one that is not {KEY_CHARS} characters of Z85") from error
    if not fits:
        raise KeysError(expected, "two halves that do not belong together")
    return Pair(public, secret)


def others_may_read(path: Path) -> bool:
    """Whether more than its owner can read a secret file."""
    return bool(path.stat().st_mode & 0o077)


def public_key(text: str) -> bytes:
    """A public key, as it stands in a .pub file (what follows the key is its name). KeysError when it is none."""
    key = text.split()[0].encode() if text.split() else b""
    if not is_key(key):
        raise KeysError(f"a public key, {KEY_CHARS} characters of Z85 as in a .pub file", repr(text[:60]))
    return key


def is_key(text: bytes) -> bool:
    """Whether it can be a public key."""
    if len(text) != KEY_CHARS:
        return False
    try:
        return len(z85.decode(text)) == 32
    except (KeyError, ValueError, zmq.ZMQError):
        return False


def read_allowed(path: Path) -> dict[bytes, str]:
    """Public key -> name, of a file with `KEY NAME` in each line; empty lines, and those that begin with `# `, are passed over."""
    try:
        with path.open("rb") as file:
            content = file.read(ALLOWED_BYTES_MAX + 1)
    except OSError as error:
        hint = "write the other ends' .pub files into it"
        raise KeysError(f"a file {path} with a public key in each line", error.strerror or str(error), hint) from error
    if len(content) > ALLOWED_BYTES_MAX:
        raise KeysError(f"at most {ALLOWED_BYTES_MAX} bytes in {path}", "more", "")
    allowed: dict[bytes, str] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        words = line.split()
        if not words or (words[0].startswith("#") and not is_key(words[0].encode())):
            continue
        try:
            allowed[public_key(line)] = " ".join(words[1:])[:200]
        except KeysError as error:
            # not the line itself: it may be a secret that was put here by mistake
            expected = f"a public key of {KEY_CHARS} characters of Z85, then a name, in line {number} of {path}"
            raise KeysError(expected, "something else", "write lines as they stand in .pub files") from error
    return allowed
