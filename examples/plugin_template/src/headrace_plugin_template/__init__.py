"""Two plugins for headrace: a sink that writes files, and an enricher that reads device names."""
