"""How a connecting socket shows its key, and learns why it is not let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import zmq
import zmq.asyncio

from headrace import Context
from headrace_transport_zmq.config import TransportConfig
from headrace_transport_zmq.guard import CRYPTOGRAPHIC, MECHANISM, happened, monitored
from headrace_transport_zmq.key_options import read_keys
from headrace_transport_zmq.keys import others_may_read

_MONITORED: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Door:
    """Of one output or source that connects. `arm` each of its sockets before it connects, `shut` it before it is closed."""

    def __init__(self, config: TransportConfig, context: Context, zmq_context: zmq.asyncio.Context) -> None:
        """KeysError when the keys cannot be read."""
        self._zmq = zmq_context
        keys = read_keys(config)
        self._pair, self._server = keys.pair, keys.server
        self._socket: zmq.Socket[Any] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        #: as of the last call of `why`
        self.connected = False
        self._reason = ""
        if config.key_file is not None and others_may_read(Path(config.key_file)):
            context.log.warning("others can read the secret key: chmod 600", path=config.key_file)

    def arm(self, socket: zmq.Socket[Any]) -> None:
        """Before `connect`."""
        if self._pair is not None:
            socket.curve_publickey, socket.curve_secretkey = self._pair.public, self._pair.secret
            socket.curve_serverkey = self._server
        # no bound: there are some for each attempt to connect, and a link looks only when it has lost the far side or found it again
        self._socket, self._monitor = socket, monitored(socket, self._zmq, _MONITORED, events_max=0)
        self.connected, self._reason = False, ""

    def shut(self) -> None:
        """Before the socket is closed. Safe twice."""
        if self._socket is not None and not self._socket.closed:
            # An event whose reader is gone would hold libzmq's own thread for ever, and with it every other socket of the context. It never
            # waits for this reader, which has no bound; so the socket can be told here.
            self._socket.monitor(None, 0)
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._socket = self._monitor = None

    def why(self) -> str:
        """Why the far side did not let this one in, as far as it can be told; empty when it was not asked, or let in since."""
        for event, value in happened(self._monitor):
            if event == zmq.EVENT_DISCONNECTED:  # behind a handshake that failed, too
                self.connected = False
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.connected, self._reason = True, ""
            elif event == zmq.EVENT_CLOSED:  # an attempt that came to no connection: what an earlier one met may be over
                self.connected, self._reason = False, "nothing listens there, or the way is cut"
            else:
                self.connected, self._reason = False, self._failure(event, value)
        return self._reason

    def _failure(self, event: int, value: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            key = self._pair.public.decode() if self._pair else ""
            return f"it does not let this key in; add {key} to its allow_keys_file"
        if self._pair is None:  # whose end is told the cause, and whose only that the other has gone, is a matter of moments
            return (
                "it wants keys; set key_file and server_key"
                if value == MECHANISM
                else "it ended the handshake; it ended itself, or wants keys"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == MECHANISM:
            return "it has no keys; set key_file there"
        if self._pair is not None and (value == CRYPTOGRAPHIC or event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL):
            return "it ended the handshake; is server_key its public key?"
        return "it ended the handshake"
