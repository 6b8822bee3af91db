"""Files that survive a power cut, and directories that only their owner can read."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path
from typing import Any

from assay.privacy.errors import BadInput

__all__ = ["PRIVATE_DIR", "PRIVATE_FILE", "make_private_dir", "read_toml", "require_private", "write_durably"]

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data`` so that a crash leaves either the old or the new content, whole.

    Temporary file, fsync, rename, fsync of the directory.

    Raises:
        OSError: the disk is full or read-only; ``path`` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_private_dir(path: Path) -> Path:
    """Create ``path`` (and its parents) readable by its owner only; an existing one is left as it is."""
    for directory in (*reversed(path.parents), path):  # mkdir(parents=True) would give parents the usual mode
        directory.mkdir(exist_ok=True, mode=PRIVATE_DIR)
    return path


def require_private(path: Path) -> None:
    """Refuse a directory or secret that others on the machine could read.

    Raises:
        BadInput: ``path`` is missing, or its mode grants anything to group or others.
    """
    if not path.exists():
        raise BadInput("path", value=str(path), allowed="an existing file or directory")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        wanted = PRIVATE_DIR if path.is_dir() else PRIVATE_FILE
        raise BadInput(
            f"permissions of {path}",
            value=f"{mode:04o}",
            allowed=f"{wanted:04o}",
            remedy=f"Run: chmod {wanted:o} {path}",
        )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        BadInput: the file is missing, not UTF-8 or not TOML; the message names the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("file", value=str(path), allowed="an existing TOML file") from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise BadInput("file", value=str(path), allowed=f"a readable TOML file ({error})") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise BadInput("file", where=path, allowed=f"valid TOML ({error})") from None
