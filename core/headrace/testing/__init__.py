"""What plugin authors test with: a context with a fake clock, a scripted `deliver`, batches, and one contract class per role.

Subclass the contract of your plugin's role in a test module and give it `make`; docs/testing.md has an example.
"""

from headrace.testing.batches import DEVICES, QUEUE_ID, event_batch, raw_batch
from headrace.testing.clock import FakeClock
from headrace.testing.context import FakeContext, fake_context, living, run
from headrace.testing.contract import Contract, failures
from headrace.testing.decoders import DecoderContract
from headrace.testing.deliver import ScriptedDeliver
from headrace.testing.enrichers import EnricherContract
from headrace.testing.fanouts import FanOutContract
from headrace.testing.links import LinkContract
from headrace.testing.queues import QueueContract
from headrace.testing.sinks import SinkContract
from headrace.testing.sources import Sender, SourceContract

__all__ = [
    "DEVICES",
    "QUEUE_ID",
    "Contract",
    "DecoderContract",
    "EnricherContract",
    "FakeClock",
    "FakeContext",
    "FanOutContract",
    "LinkContract",
    "QueueContract",
    "ScriptedDeliver",
    "Sender",
    "SinkContract",
    "SourceContract",
    "event_batch",
    "failures",
    "fake_context",
    "living",
    "raw_batch",
    "run",
]
