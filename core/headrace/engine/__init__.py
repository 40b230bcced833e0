"""The engine behind a tier: what happens between a queue and its outputs.

supervisor        one component under care: opened with retries, restarted after a bug
pipeline_thread   the thread on which a tier decodes, enriches and stores
pipeline          decode and enrich, once per batch          enrichment     one enricher at work
outputs           driving one output; output_streaming, output_planned, output_sending and output_loose differ by what the
                  far side can promise; output_resuming: what it can tell
narrowing         the event at fault, found by halving       quarantine     refused rows on their way to `dead_letters`
buffer            what stands in for the queue in a tier without one
"""
