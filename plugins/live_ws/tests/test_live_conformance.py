"""live_ws under the kit's contract of outputs. It holds nothing, so the contract looks at its life and its hooks."""

from __future__ import annotations

import msgspec

from headrace import Context
from headrace.testing import SinkContract
from headrace_live_ws import LiveWs


class TestLiveWs(SinkContract):
    def make(self, context: Context) -> LiveWs:
        return LiveWs(msgspec.convert({"listen": "127.0.0.1:0"}, LiveWs.Config), context)
