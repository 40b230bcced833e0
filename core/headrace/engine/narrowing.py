"""Which event of a failing range is at fault? Found by halving. No I/O.

An output tries a range; when it fails for good (refused without naming rows, or broken `attempts_max` times), half of it is
tried, and so on down to the one event. What succeeds on the way is done; after each find the rest is tried as a whole again.
"""

from __future__ import annotations


class Narrowing:
    """The suspicion against one output's next positions. `limit` is how many of them to try at once."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self._last = 0

    @property
    def active(self) -> bool:
        """Whether the next positions are under suspicion: try at most `limit` of them, and flush right after."""
        return self.limit is not None

    def failed(self, first: int, last: int) -> bool:
        """The range failed for good. True: it is the one event at fault, set it aside; False: try `limit` positions."""
        if first == last:
            return True
        self._last = max(self._last, last)
        self.limit = (last - first + 1) // 2
        return False

    def done(self, upto: int) -> None:
        """Everything up to this position is safe, or set aside: the rest of the suspect range comes as a whole."""
        self.limit = self._last - upto if upto < self._last else None
