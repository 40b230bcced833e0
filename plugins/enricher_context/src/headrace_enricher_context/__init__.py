"""Joins what a site's own database knows about each device (class, type, site, place, ...) to its events."""

from headrace_enricher_context.enricher import EnricherContext

__all__ = ["EnricherContext"]
