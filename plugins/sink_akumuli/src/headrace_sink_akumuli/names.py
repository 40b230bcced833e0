"""Names of series: what Akumuli may safely be given, and back again. No I/O.

Akumuli puts series names into its SQL unquoted: one apostrophe ends the server. So a name has letters, digits and a few marks of ASCII,
and everything else is percent-encoded as UTF-8, as in URLs: `Bär's` becomes `B%C3%A4r%27s`. `%` itself is always encoded, so
every text has one encoding and comes back whole. An empty text is a single `%`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote

#: The server refuses names of more than about 1,020 bytes, and cuts off tags beyond the 32nd without a word.
NAME_BYTES_MAX: Final = 1000
TAGS_MAX: Final = 31

#: The tag that is always there.
DEVICE: Final = "device"
#: What stands for context that is null, empty or absent.
UNKNOWN: Final = "unknown"
EMPTY: Final = "%"

_TAG_MARKS: Final = ":/"
_TAG: Final = re.compile(r"[A-Za-z0-9_.:/-]+")
#: `:` parts a function from a metric in the server's answers, `|` joins metrics, and `!` begins an event.
_METRIC: Final = re.compile(r"[A-Za-z0-9_.-]+")


def tag_value(text: str) -> str:
    """A tag's value (or name) as it is sent."""
    return text if _TAG.fullmatch(text) else _escaped(text, _TAG_MARKS)


def metric_name(text: str) -> str:
    """A reading's name as it is sent."""
    return text if _METRIC.fullmatch(text) else _escaped(text, "")


def _escaped(text: str, marks: str) -> str:
    # "surrogatepass": text that is not quite Unicode must not stop a batch. quote() leaves `~` alone, the whitelist does not
    return quote(text.encode("utf-8", "surrogatepass"), safe=marks).replace("~", "%7E") or EMPTY


def plain(name: str) -> str:
    """The text that `tag_value` or `metric_name` was given."""
    return "" if name == EMPTY else unquote(name, errors="surrogatepass")


def series_name(metric: str, tags: Mapping[str, str]) -> str:
    """The name of one series, in the server's own order: by tag. Metric and tags are escaped already."""
    return " ".join([metric, *(f"{name}={tags[name]}" for name in sorted(tags))])


def parse(name: str) -> tuple[str, dict[str, str]]:
    """Metric and tags (escaped, as sent) of a series' name; a ValueError names what is none."""
    metric, *pairs = name.split(" ")
    tags = dict(pair.partition("=")[::2] for pair in pairs)
    if not metric or not tags:
        raise ValueError(f"expected a metric and tags, got {name!r}")
    return metric, tags
