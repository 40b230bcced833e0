"""What an error of the disk means, and what the person on call is to do about it. No I/O."""

from __future__ import annotations

import errno
from typing import Final

#: The disk has no room, and is otherwise well.
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
#: A file that cannot be opened because of these may be as sound as ever: the open fails, and is tried again.
NOT_DAMAGE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR})

_ADVICE: Final = {
    errno.EROFS: "the filesystem is read-only: the kernel's log (dmesg) may say why; mend it, and mount it writable again",
    errno.EIO: "the device or its filesystem fails: the kernel's log (dmesg) says how; mend or replace it, and mount it again",
    errno.EACCES: "give this user the rights to the directory and its files",
}


def told(error: OSError) -> str:
    """An error with what to do about it."""
    advice = _ADVICE.get(error.errno or 0)
    return f"{error}: {advice}" if advice else str(error)
