"""Outputs that publish to whoever listens (`transport_publish`): a live feed, split by topic."""

from __future__ import annotations

from headrace.engine.output_loose import LooseOutput
from headrace.engine.outputs import OutputServices
from headrace.engine.reading import Events
from headrace.engine.supervisor import Supervised
from headrace.engine.topics import Topics
from headrace.schema import plain_context


class PublishingOutput(LooseOutput):
    """Events, decoded and enriched, whatever its class takes when it is a link."""

    hooks = "transport"

    def __init__(self, unit: Supervised, services: OutputServices) -> None:
        super().__init__(unit, services)
        self._reads = services.pipeline
        self._topics = Topics(self.keys.topic)

    async def _put(self, events: Events) -> None:
        for topic, batch in self._topics.split(plain_context(events.batch)):
            await self._call("publish", batch=batch, topic=topic)

    async def _finish(self, events: Events) -> None:
        """What was published is gone."""

    async def _forget(self) -> None:
        """Nothing is kept."""
