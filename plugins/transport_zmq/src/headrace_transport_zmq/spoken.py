"""For which queue ids, on which lanes, an output has spoken: so that it can say which of them are over (DELIVERY 2).

Not synced: what a crash forgets is a mark that the far queue keeps for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Container
from pathlib import Path
from typing import Final, NamedTuple

FILE: Final = "spoken.json"
SPOKEN_MAX: Final = 4096
#: Named in one hello; the others in the next ones.
NAMED_MAX: Final = 256


class Spoken(NamedTuple):
    """A lane of a queue id; `<queue id>/<lane>` in a hello."""

    queue_id: str
    lane: int

    def __str__(self) -> str:
        return f"{self.queue_id}/{self.lane}"


class Ledger:
    """The ids of one output, oldest first. Blocks for a small file."""

    def __init__(self, folder: Path, proof: str) -> None:
        """proof: of the queue that it speaks for; of another queue's ids nothing is known here."""
        self._file, self._proof = folder / FILE, proof
        self._spoken: dict[Spoken, None] = {}
        try:
            content = json.loads(self._file.read_bytes())
            if content["proof"] == proof:
                self._spoken = {Spoken(str(queue_id), int(lane)): None for queue_id, lane in content["spoken"]}
        except (OSError, ValueError, TypeError, KeyError):
            return  # none yet, or damaged: it begins anew

    def speaks(self, spoken: Spoken) -> None:
        """It speaks for this one now."""
        if spoken not in self._spoken:
            self._spoken[spoken] = None
            while len(self._spoken) > SPOKEN_MAX:
                del self._spoken[next(iter(self._spoken))]
            self._keep()

    def over(self, held: Container[str]) -> list[Spoken]:
        """Those of which the queue, which holds something of the ids `held`, has nothing any more."""
        return [spoken for spoken in self._spoken if spoken.queue_id not in held][:NAMED_MAX]

    def noted(self, over: Collection[Spoken]) -> None:
        """The far side knows of them."""
        if told := set(over) & self._spoken.keys():
            self._spoken = {spoken: None for spoken in self._spoken if spoken not in told}
            self._keep()

    def _keep(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps({"proof": self._proof, "spoken": list(self._spoken)}))
        part.replace(self._file)
