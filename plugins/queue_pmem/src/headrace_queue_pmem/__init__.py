"""headrace's persistent queue: a ring of Arrow frames on libpmemobj pools, or on preallocated files."""

from headrace_queue_pmem.component import QueuePmem

__all__ = ["QueuePmem"]
