"""The other side of the wire: a device client, a simulated fleet, and a replay of recorded readings.

`headrace devices simulate` and `headrace devices replay` drive any server that speaks the device protocol. A message counts
as done only when the server acknowledged it; what is unacknowledged when a connection ends is sent again on the next one.
"""

from headrace.devices.client import DeviceClient
from headrace.devices.fleet import SimulatedDevice, fleet, write_devices_csv
from headrace.devices.outbox import Message, Outbox, ProtocolError
from headrace.devices.reconnect import GaveUp

__all__ = ["DeviceClient", "GaveUp", "Message", "Outbox", "ProtocolError", "SimulatedDevice", "fleet", "write_devices_csv"]
