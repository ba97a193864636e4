"""Output files appear completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replay.errors import OutputError, UsageError


@contextmanager
def replacing(path: str | os.PathLike[str], is_named: bool = True) -> Iterator[Path]:
    """A temporary file beside ``path``, with the same suffix, renamed to ``path`` if the block succeeds.

    If the block raises, also because of an interrupt, the temporary file is removed and ``path`` is
    unchanged.  If ``path`` is not a regular file (/dev/stdout), it is written directly, provided that the
    user named it (``is_named``).  Raises ``OutputError`` for any ``OSError`` of the block.
    """
    target = temporary = Path(path)
    if target.exists() and not target.is_file():  # the link /dev/stdout leads to no name if that is a pipe
        if target.is_dir():
            raise OutputError(path, "Is a directory")
        if not is_named:
            raise OutputError(path, "not a regular file")
    else:
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        yield temporary
        if temporary != target:
            os.replace(temporary, target)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    finally:
        if temporary != target:
            with suppress(OSError):
                temporary.unlink()


def write_text(path: str | os.PathLike[str], text: str, is_named: bool = True) -> None:
    """Write a text file, completely or not at all.  ``is_named`` as in ``replacing``."""
    with replacing(path, is_named) as temporary:
        temporary.write_text(text, "utf-8")


def check_ending(path: Path, *endings: str) -> None:
    """Raises ``UsageError`` for a path that ends in none of ``endings``."""
    if path.suffix not in endings:
        *others, last = endings
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{path}: the file name must end in {allowed}")


def make_directory(path: str | os.PathLike[str]) -> Path:
    """The directory ``path``, created if it does not exist.  Raises ``OutputError``."""
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(path, error.strerror or str(error)) from error
    return directory
