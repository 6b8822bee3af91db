"""A coordinator's or a holder's directory: made whole or not at all, used by one daemon at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.privacy.errors import AssayError, BadInput
from assay.privacy.files import PRIVATE_DIR, PRIVATE_FILE, make_private_dir

__all__ = ["already_in_use", "directory_lock", "new_home"]

# Stands in a directory from the first to the last step of its making. A directory that still holds it
# was never completed (crash, full disk), so that starting again overwrites nothing anybody relies on.
_MARKER = ".initialising"
_LOCK = ".lock"


@contextmanager
def new_home(directory: Path, *, remedy: str) -> Iterator[Path]:
    """Make ``directory`` with mode 0700 and ``keys/`` inside; the body writes the files.

    Where the body fails or the process is killed, the next call starts again. A mounted empty volume
    is as good as a missing directory, which is why nothing is renamed into place.

    Args:
        directory: missing, or empty, or left by an interrupted call.
        remedy: what to do instead where the directory is in use.

    Raises:
        BadInput: it is not a directory, belongs to someone else, is being initialised by another
            process or holds anything. Nothing in it is touched then.
    """
    if not os.path.lexists(directory):
        make_private_dir(directory)
    if not directory.is_dir():
        raise BadInput(
            "directory", value=str(directory), allowed="a new or an empty directory", remedy=remedy
        )
    if directory.stat().st_uid != os.geteuid():
        raise BadInput("directory", value=str(directory), allowed="a directory of the user who runs this")
    found = set(os.listdir(directory))
    if found and _MARKER not in found:
        raise BadInput(
            "directory", value=str(directory), allowed="a new or an empty directory", remedy=remedy
        )
    directory.chmod(PRIVATE_DIR)
    marker = directory / _MARKER
    descriptor = os.open(marker, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(
                "directory", value=str(directory), allowed="one that no other process is initialising"
            ) from None
        make_private_dir(directory / "keys")
        yield directory
        marker.unlink()
        _sync(directory)
    finally:
        os.close(descriptor)


@contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold a directory for one daemon; the kernel frees it when the process ends, however it ends.

    Raises:
        AssayError: another process holds it.
    """
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, PRIVATE_FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise already_in_use(directory) from None
        yield
    finally:
        os.close(descriptor)


def already_in_use(directory: Path) -> AssayError:
    """Return the error for a second daemon on one directory."""
    return AssayError(
        f"{directory}: already serving; allowed: one process per directory. Stop the other process first"
    )


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
