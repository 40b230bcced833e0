"""A plugin's options: secrets, conversion to the typed `Config`, and how they are shown.

Errors of msgspec are told again as ConfigError: file, key path, what was expected, what came, and the key that was meant.
"""

from __future__ import annotations

import hmac
import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import msgspec.inspect as mi

from headrace.component import Component, Config
from headrace.errors import ConfigError, did_you_mean
from headrace.values import Filled, toml_value

S = TypeVar("S", bound=msgspec.Struct)

MASK: Final = "***"


class Secret:
    """A secret option (token, password, key): prints as `***` everywhere; `reveal()` gives the text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself: hand it to the library that needs it, and to nobody else."""
        return self._text

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._text))


def convert(kind: type[S], values: dict[str, Any], file: str, path: str, extra: Iterable[str] = ()) -> S:
    """`values` as a `kind`. Raises ConfigError for the first thing wrong; `extra` are further keys for did-you-mean.

    A string that was wholly filled in from the environment may stand for a number or a boolean.
    """
    for key in values:
        if key not in _keys(kind):
            raise unknown_key(file, f"{path}.{key}" if path else key, key, [*_keys(kind), *extra])
    while True:
        try:
            return msgspec.convert(_plain(values), kind, dec_hook=_decode)
        except msgspec.ValidationError as error:
            text, at = _split(str(error))
            if not _reread(values, at):
                raise _told(kind, values, text, at, file, path) from None


def unknown_key(file: str, path: str, key: str, known: Iterable[str]) -> ConfigError:
    """The error for a key that nobody reads."""
    names = sorted(known)
    hint = did_you_mean(key, names).removeprefix("; ")
    return ConfigError(file, path, f"one of {', '.join(names)}" if names else "no key", f"the unknown key {key!r}", hint)


def shown(options: msgspec.Struct, values: dict[str, Any]) -> dict[str, Any]:
    """Options with their defaults as plain values, safe to print: secrets, what came from files, passwords in URLs are `***`."""
    return {
        name: _masked(msgspec.to_builtins(getattr(options, name), enc_hook=encode), values.get(name)) for name in options.__struct_fields__
    }


def config_problems(plugin: type[Component], reserved: Iterable[str]) -> list[str]:
    """What is wrong with a plugin's Config class; empty when nothing is."""
    kind = plugin.Config
    at = f"{plugin.__name__}.Config{_line(kind)}"
    if not (isinstance(kind, type) and issubclass(kind, Config)):
        return [f"{at} must be a subclass of headrace.Config"]
    problems = [
        f"{at}: the option {name!r} has a name that the host keeps for itself; rename it" for name in sorted(_keys(kind) & set(reserved))
    ]
    if not (kind.__struct_config__.frozen and kind.__struct_config__.forbid_unknown_fields):
        problems.append(f"{at} must stay frozen and keep forbid_unknown_fields")
    return problems


_PASSWORD: Final = re.compile(r"(://[^:/@\s]*:)[^@/\s]+(?=@)")


def _keys(kind: type[msgspec.Struct]) -> set[str]:
    return set(kind.__struct_encode_fields__)


def _plain(values: Any) -> Any:
    """Filled strings as what plugins expect: str and nothing else."""
    if isinstance(values, dict):
        return {key: _plain(item) for key, item in values.items()}
    if isinstance(values, list):
        return [_plain(item) for item in values]
    return str(values) if isinstance(values, Filled) else values


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Secret or kind is Path:
        if isinstance(value, str):
            return kind(value)
        # msgspec turns a TypeError into its ValidationError, and adds the path.
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    raise NotImplementedError(f"options of type {kind!r} are not supported")


def encode(value: Any) -> Any:
    """msgspec's `enc_hook` for what options may hold."""
    if isinstance(value, Secret):
        return MASK if value else ""
    return str(value)


def _masked(value: Any, came: Any) -> Any:
    if isinstance(value, dict):
        return {key: _masked(item, came.get(key) if isinstance(came, dict) else None) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, came[i] if isinstance(came, list) and i < len(came) else None) for i, item in enumerate(value)]
    if isinstance(came, Filled) and came.secret:
        return MASK
    return _PASSWORD.sub(rf"\g<1>{MASK}", value) if isinstance(value, str) else value


# --- errors of msgspec, told with path and hint ----------------------------------------------------------------------


def _split(message: str) -> tuple[str, list[str | int]]:
    """``Expected `int` - at `$.a[1].b` `` -> its text and ["a", 1, "b"]; "..." stands for any key of a dict."""
    text, _, at = message.partition(" - at `")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]|\[(\.\.\.)\]", at)
    return text, [name or (int(index) if index else dots) for name, index, dots in steps]


def _reread(values: Any, at: list[str | int]) -> bool:
    """Replace a wholly filled-in string at that place by the number or boolean that it spells; whether that was possible."""
    if not at or "..." in at:
        return False
    holder, value = _follow(values, at[:-1]), _follow(values, at)
    if not (isinstance(value, Filled) and value.whole):
        return False
    spelled = toml_value(value)
    if not isinstance(spelled, int | float):
        return False
    holder[at[-1]] = spelled
    return True


def _told(kind: type[msgspec.Struct], values: Any, text: str, at: list[str | int], file: str, path: str) -> ConfigError:
    here = path + "".join(f"[{step}]" if isinstance(step, int) else f".{step.replace('...', '*')}" for step in at)
    here = here.removeprefix(".")
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        return unknown_key(file, f"{here}.{match[1]}", match[1], _keys_at(kind, at))
    if match := re.fullmatch(r"Object missing required field `(.*)`", text):
        return ConfigError(file, f"{here}.{match[1]}".removeprefix("."), "a value", "none", "it has no default")
    expected, _, got = text.partition(", got ")
    value = _follow(values, at)
    came = got.strip("`") or "another value"
    if isinstance(value, Filled):
        came = f"what {value.template} stands for"
    elif value is not None and not isinstance(value, dict | list) and not _is_secret(kind, at):
        came = repr(value)
    if text.startswith(("Invalid enum value", "Invalid value")):
        choices = _choices_at(kind, at)
        hint = did_you_mean(str(value), choices).removeprefix("; ")
        return ConfigError(file, here, " or ".join(repr(choice) for choice in choices) or "another value", came, hint)
    if not text.startswith("Expected "):  # a ValueError of the Config's own __post_init__
        return ConfigError(file, here, "options that fit together", text)
    return ConfigError(file, here, _words(expected), came)


def _words(expected: str) -> str:
    text = expected.removeprefix("Expected ").replace("`", "")
    names = {"str": "a string", "int": "an integer", "float": "a number", "bool": "true or false", "array": "a list", "object": "a table"}
    for name, word in names.items():
        text = re.sub(rf"^{name}\b", word, text)
    return text.replace(" | null", "")


def _follow(values: Any, at: list[str | int]) -> Any:
    for step in at:
        try:
            values = values[step]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _type_at(kind: type[msgspec.Struct], at: list[str | int]) -> mi.Type | None:
    """The declared type at a place, through nested structs, lists, dicts and optionals."""
    here: mi.Type | None = mi.type_info(kind)
    for step in at:
        if isinstance(here, mi.StructType):
            here = next((field.type for field in here.fields if field.encode_name == step), None)
        elif isinstance(here, mi.DictType):
            here = here.value_type
        elif isinstance(here, mi.CollectionType):
            here = here.item_type
        else:
            return None
        here = bare(here) if here else None
    return here


def bare(kind: mi.Type) -> mi.Type:
    """The type without Optional around it and Meta upon it."""
    while True:
        if isinstance(kind, mi.Metadata):
            kind = kind.type
        elif isinstance(kind, mi.UnionType) and len(rest := [one for one in kind.types if not isinstance(one, mi.NoneType)]) == 1:
            kind = rest[0]
        else:
            return kind


def _keys_at(kind: type[msgspec.Struct], at: list[str | int]) -> list[str]:
    here = _type_at(kind, at)
    return [field.encode_name for field in here.fields] if isinstance(here, mi.StructType) else []


def _choices_at(kind: type[msgspec.Struct], at: list[str | int]) -> list[str]:
    here = _type_at(kind, at)
    return [str(value) for value in here.values] if isinstance(here, mi.LiteralType) else []


def _is_secret(kind: type[msgspec.Struct], at: list[str | int]) -> bool:
    here = _type_at(kind, at)
    return isinstance(here, mi.CustomType) and here.cls is Secret


def _line(kind: type[Any]) -> str:
    try:
        return f" ({inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]})"
    except (OSError, TypeError, SystemError):  # SystemError: CPython 3.11's ast.parse, when a finalizer logs a traceback meanwhile
        return ""
