"""Which event of a failing range is at fault? Found by halving. No I/O.

An output tries a range; when it fails for good (refused without naming rows, or broken `attempts_max` times), half of it is
tried, and so on down to the one event. What succeeds on the way is done; after each find the rest is tried as a whole again.
"""

from __future__ import annotations


class Narrowing:
    """The suspicion against one output's next positions. `limit` is how many of them to try at once."""

    def __init__(self) -> None:
        self.limit: int | None = None
        #: the ends of the failing ranges, each inside the one before it
        self._ends: list[int] = []

    @property
    def active(self) -> bool:
        """Whether the next positions are under suspicion: try at most `limit` of them, and flush right after."""
        return self.limit is not None

    def failed(self, first: int, last: int) -> bool:
        """The range failed for good. True: it is the one event at fault, set it aside; False: try `limit` positions."""
        if first == last:
            return True
        self._ends.append(last)
        self.limit = (last - first + 1) // 2
        return False

    def again(self, first: int, last: int) -> None:
        """The range was under suspicion before a restart: try it as it was."""
        self._ends.append(last)
        self.limit = last - first + 1

    def done(self, upto: int) -> None:
        """Everything up to this position is safe, or set aside: the rest of the innermost failing range comes as a whole."""
        while self._ends and self._ends[-1] <= upto:
            self._ends.pop()
        self.limit = self._ends[-1] - upto if self._ends else None
