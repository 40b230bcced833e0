"""Enriched events live over WebSocket, with a dashboard page."""

from headrace_live_ws.live import LiveWs

__all__ = ["LiveWs"]
