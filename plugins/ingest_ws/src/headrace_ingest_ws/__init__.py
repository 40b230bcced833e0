"""Source `ingest_ws`: devices send events over WebSocket or POST, and are acknowledged when these are durable.

The parts:

- `server.py`      aiohttp: routes, limits, the sweep over idle connections, drain
- `handshake.py`   from aiohttp's request to a bare transport
- `websocket.py`   RFC 6455 on that transport: reading, pings, the close handshake, flow control
- `connection.py`  the same for devices: messages to the intake, acks back; `echo.py` for conformance suites
- `parser.py`      frames: what a parser finds; `wsframes.c` (with `parser_c.py`) and `parser_python.py` behave alike
- `post.py`        the same events over POST
- `intake.py`      what all connections gather, its commits, and who is told afterwards
- `directory.py`   which connection holds a device session, and where it goes on; `session_connection.py` such a connection
- `refusals.py`    the note with a session's refused messages (no I/O)
- `session.py`     what one connection owes its client (no I/O); `protocol.py` the texts on the wire (no I/O)
- `message.py`     from a message to its events, or the reason to refuse it (no I/O)
"""

from headrace_ingest_ws.component import IngestWs

__all__ = ["IngestWs"]
