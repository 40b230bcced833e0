"""The medium proper: each area is the root object of a libpmemobj pool, bound through cffi in ABI mode (no compiler).

Pools are made and written through libpmemobj. Reading maps the file plainly, so that a pool whose own metadata is damaged
still gives up its frames.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any, Final

from headrace_queue_pmem import libc
from headrace_queue_pmem.area import Area, Pace, WrittenArea, no_pace, slices
from headrace_queue_pmem.layout import POOL, POOL_AT, POOL_MAGIC, checksum
from headrace_queue_pmem.libc import ffi
from headrace_queue_pmem.medium import FileMedium, Level

ffi.cdef(
    """
    typedef struct { uint64_t pool_uuid_lo; uint64_t off; } PMEMoid;
    typedef struct pmemobjpool PMEMobjpool;
    PMEMobjpool *pmemobj_create(const char *path, const char *layout, size_t poolsize, unsigned mode);
    PMEMobjpool *pmemobj_open(const char *path, const char *layout);
    void pmemobj_close(PMEMobjpool *pop);
    PMEMoid pmemobj_root(PMEMobjpool *pop, size_t size);
    size_t pmemobj_root_size(PMEMobjpool *pop);
    void pmemobj_persist(PMEMobjpool *pop, uintptr_t addr, size_t len);
    const char *pmemobj_errormsg(void);
    int pmemobj_ctl_set(PMEMobjpool *pop, const char *name, void *arg);
    """
)

LAYOUT: Final = b"headrace-queue-1"
POOL_BYTES_MIN: Final = 8 << 20
#: What libpmemobj keeps of a pool for itself: 4.5 MiB in 1.12.1, whatever the size (measured at 8 to 256 MiB).
POOL_OVERHEAD_BYTES: Final = 4608 << 10


def load() -> Any:
    """libpmemobj, or OSError where it is not installed."""
    # Read once at first use: without it libpmemobj would msync on ordinary files by itself, and abort where that fails.
    # Level `power` on files is then our own fdatasync.
    os.environ["PMEM_IS_PMEM_FORCE"] = "1"
    library: Any = ffi.dlopen("libpmemobj.so.1")
    # libpmemobj 2 refuses to create a pool where no unsafe-shutdown counter exists, unless told so.
    library.pmemobj_ctl_set(ffi.NULL, b"sds.at_create", ffi.new("int *", 0))
    return library


def metadata_crc(base: int, start: int, length: int, size: int) -> int:
    """CRC32C of a pool's file around our area: descriptor, lanes and heap, without the pool header (which has a checksum of
    its own) and without what libpmemobj changes at every open."""
    memory = libc.view(base, size)
    return checksum(memory[0x1000:0x1800], memory[0x2000:start], memory[start + length :])


class PmemMedium(FileMedium):
    """libpmemobj pools; notes stay plain files."""

    name = "pmem"

    def __init__(self, directory: Path, level: Level, filesystem: str = "file", dax: bool = False) -> None:
        super().__init__(directory, level, filesystem, dax)
        self._library = load()
        if dax:
            self.method = "pmemobj_persist"

    def create(self, name: str, size: int, pace: Pace = no_pace) -> Area:
        path = self.directory / name
        pool = self._library.pmemobj_create(os.fsencode(path), LAYOUT, size, 0o600)
        if pool == ffi.NULL:
            raise self._error(f"pmemobj_create {path}")
        area: Area | None = None
        try:
            # Zeroing the root object faults in page after page of it, in one call: done before in slices, little of that is left.
            for at, length in slices(int(ffi.cast("uintptr_t", pool)), size // libc.PAGE * libc.PAGE):
                libc.populate_written(at, length)
                pace()
            root = self._library.pmemobj_root(pool, size - POOL_OVERHEAD_BYTES)
            if root.off == 0:
                raise self._error(f"pmemobj_root of {size - POOL_OVERHEAD_BYTES} bytes in {path}")
            area = self._pool_area(name, pool, root)
            synced = self.level == "power" and not self.dax
            if synced:
                area.write_out(pace)  # before the first sync: that would write the pages back while they are in the map
            self._note_metadata(pool, area, size)
            if synced:
                area.sync(0, area.size)
            self._sync_directory()
        except OSError:
            if area is not None:
                area.close()
            else:
                self._library.pmemobj_close(pool)
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return area

    def open(self, name: str) -> Area:
        path = self.directory / name
        # libpmemobj trusts its own structures: opening a pool in which they are damaged may end the process (seen with 1.12.1).
        plain = self.read(name)
        place = self._check_metadata(name, plain)
        pool = self._library.pmemobj_open(os.fsencode(path), LAYOUT)
        if pool == ffi.NULL:
            raise self._error(f"pmemobj_open {path}")
        size = self._library.pmemobj_root_size(pool)
        if size == 0:
            self._library.pmemobj_close(pool)
            raise OSError(errno.EINVAL, f"{path} is a pool without a root object")
        area = self._pool_area(name, pool, self._library.pmemobj_root(pool, size))
        if area.address - int(ffi.cast("uintptr_t", pool)) != place or area.size > plain.size:
            area.close()
            raise OSError(errno.EINVAL, f"{path} has its root object elsewhere than its content")
        return area

    def usable(self, size: int) -> int:
        return (size - POOL_OVERHEAD_BYTES) // libc.PAGE * libc.PAGE - libc.PAGE

    def _pool_area(self, name: str, pool: Any, root: Any) -> Area:
        library = self._library
        base = int(ffi.cast("uintptr_t", pool))
        # A root object is 16-byte aligned; ours begins at the next page of the file, so that cache lines and msync ranges line up.
        start = -(-int(root.off) // libc.PAGE) * libc.PAGE
        size = (int(root.off) + library.pmemobj_root_size(pool) - start) // libc.PAGE * libc.PAGE

        def persist(address: int, length: int) -> None:
            library.pmemobj_persist(pool, address, length)

        def release() -> None:
            library.pmemobj_close(pool)

        if self.dax:
            return Area(base + start, size, persist, persist, release)
        descriptor = os.open(self.directory / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            return WrittenArea(base + start, size, descriptor, start, self.level == "power", release)
        finally:
            os.close(descriptor)

    def _note_metadata(self, pool: Any, area: Area, size: int) -> None:
        base = int(ffi.cast("uintptr_t", pool))
        record = POOL_MAGIC + metadata_crc(base, area.address - base, area.size, size).to_bytes(4, "little")
        record += checksum(record).to_bytes(4, "little")
        for at in POOL_AT:
            area.write(at, record, len(record))
        area.persist(0, libc.PAGE)

    def _check_metadata(self, name: str, plain: Area) -> int:
        """Where in the file the area begins; OSError when libpmemobj's part is not what it was when the pool was made."""
        size = self.size(name)
        if size % libc.PAGE:
            raise OSError(errno.EINVAL, f"{name} was cut off: {size} bytes is no whole number of pages")
        for at in POOL_AT:
            magic, crc, own = POOL.unpack(bytes(plain.view[at : at + POOL.size]))
            if magic == POOL_MAGIC and checksum(bytes(plain.view[at : at + POOL.size - 4])) == own:
                # The plain map reaches to the end of the file, the area only as far as the root object.
                start = size // libc.PAGE * libc.PAGE - plain.size
                libc.populate(plain.address - start, start)
                if metadata_crc(plain.address - start, start, self.usable(size), size) == crc:
                    return start
                raise OSError(errno.EINVAL, f"{name}: the pool's own metadata is damaged")
        raise OSError(errno.EINVAL, f"{name} is not a pool of this queue, or too damaged to be opened as one")

    def _error(self, doing: str) -> OSError:
        code = ffi.errno or errno.EIO
        text: Any = ffi.string(self._library.pmemobj_errormsg())
        text = text.decode(errors="replace")
        return OSError(code, f"{doing}: {text}")
