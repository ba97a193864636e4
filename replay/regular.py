"""Files that the user did not name: if a pipe or device is in their place, it is not waited for."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """``path`` to be read, unbuffered.  Raises ``OSError`` for a pipe, socket, device or directory, too."""
    return open(path, "rb", buffering=0, opener=_opened)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises ``OSError`` if ``path`` is missing or not a regular file."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        os.scandir(path).close()  # where that cannot be done either, it says more
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", path)


def _opened(path: str, flags: int) -> int:
    check_regular(path)  # to open a device may do something
    return os.open(path, flags | os.O_NONBLOCK)  # should it have become a pipe meanwhile
