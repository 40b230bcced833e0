"""Source `ingest_ws`: devices send events over WebSocket or POST, and are acknowledged when these are durable.

The parts, so that the message loop can be replaced without touching the others:

- `server.py`      aiohttp: routes, limits, the sweep over idle connections, drain
- `connection.py`  one WebSocket connection's loop: the only module that knows how frames are read
- `post.py`        the same events over POST
- `intake.py`      what all connections gather, its commits, and who is told afterwards
- `session.py`     what one connection owes its client (no I/O); `protocol.py` the texts on the wire (no I/O)
- `message.py`     from a message to its events, or the reason to refuse it (no I/O)
"""

from headrace_ingest_ws.component import IngestWs

__all__ = ["IngestWs"]
