"""From a TOML file to plain values: overrides applied, `${...}` filled in. No types yet.

${NAME}            an environment variable that must be set
${NAME:-default}   the same, with a default for when it is unset or empty
${file:/path}      what the file holds, without the newline at its end
$${                a literal ${
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from headrace.errors import ConfigError

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Filled(str):
    """A string in which `${...}` was filled in. `template` is what the file says: errors show that, never the value."""

    template: str
    secret: bool  # something came from ${file:...}
    whole: bool  # the string was one reference and nothing else, so it may stand for a number or a boolean

    def __new__(cls, value: str, template: str, secret: bool, whole: bool) -> Filled:
        self = super().__new__(cls, value)
        self.template, self.secret, self.whole = template, secret, whole
        return self


def read(file: Path) -> str:
    """What stands in the file. Raises ConfigError when it cannot be read."""
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise ConfigError(str(file), "", "a readable file", error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), "", "UTF-8 text", f"byte 0x{error.object[error.start]:02x} at offset {error.start}") from error


def parse(text: str, file: Path) -> dict[str, Any]:
    """The tables of a file with this text. Raises ConfigError with line and column when it is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(str(file), "", "valid TOML", f"a syntax error: {_lower(str(error))}") from error


def override(tables: dict[str, Any], file: str, assignments: Sequence[str]) -> None:
    """Apply `key.path=value` assignments in place; the value is TOML, or a bare string where it is no TOML.

    An element of a list of tables is named by its `id`, its `use`, or its index.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        parts = path.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError("--set", "", "KEY.PATH=VALUE", repr(assignment))
        target: Any = tables
        for depth, part in enumerate(parts[:-1]):
            target = _step(target, part, file, ".".join(parts[: depth + 1]))
        if not isinstance(target, dict):
            raise ConfigError(file, ".".join(parts[:-1]), "a table", f"{target!r} (from --set {assignment})")
        target[parts[-1]] = toml_value(text)


def toml_value(text: str) -> Any:
    """`8080` is a number, `"x"` and `x` are strings, `[1, 2]` is a list."""
    try:
        parsed = tomllib.loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def fill(values: Any, file: str, path: str, environ: Mapping[str, str]) -> tuple[Any, list[ConfigError]]:
    """The same values with every `${...}` filled in, and what could not be filled in (left as it stands)."""
    problems: list[ConfigError] = []

    def walk(value: Any, at: str) -> Any:
        if isinstance(value, dict):
            return {key: walk(item, f"{at}.{key}" if at else key) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item, f"{at}[{index}]") for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            try:
                return _filled(value, file, at, environ)
            except ConfigError as error:
                problems.append(error)
        return value

    return walk(values, path), problems


def _filled(template: str, file: str, path: str, environ: Mapping[str, str]) -> str:
    references = []

    def value_of(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        if match[1] is None:
            raise ConfigError(file, path, "`}` after `${`", repr(template), "write $${ for a literal ${")
        references.append(match)
        return _lookup(match[1], file, path, environ)

    text = _REFERENCE.sub(value_of, template)
    if not references:
        return text
    secret = any(match[1].startswith("file:") for match in references)
    return Filled(text, template, secret, references[0][0] == template)


def _lookup(reference: str, file: str, path: str, environ: Mapping[str, str]) -> str:
    if reference.startswith("file:"):
        secret_file = Path(reference.removeprefix("file:")).expanduser()
        try:
            return secret_file.read_text("utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(file, path, f"a readable file {secret_file}", why) from error
    name, dash, default = reference.partition(":-")
    if not _NAME.fullmatch(name):
        raise ConfigError(file, path, "${NAME}, ${NAME:-default} or ${file:/path}", "${" + reference + "}", "write $${ for a literal ${")
    if value := environ.get(name):
        return value
    if dash:
        return default
    if name in environ:
        return ""
    raise ConfigError(file, path, f"the environment variable {name}", "none of that name", f"set it, or write ${{{name}:-default}}")


def _step(target: Any, part: str, file: str, path: str) -> Any:
    if isinstance(target, dict):
        return target.setdefault(part, {})
    if isinstance(target, list):
        for index, element in enumerate(target):
            if isinstance(element, dict) and part in (element.get("id", element.get("use")), str(index)):
                return element
        known = [str(element.get("id", element.get("use"))) for element in target if isinstance(element, dict)]
        raise ConfigError(file, path, f"one of {', '.join(known) or 'none'}", repr(part), "an element of a list is named by its id")
    raise ConfigError(file, path, "a table", repr(target))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
