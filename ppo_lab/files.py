"""Files that no reader ever finds half of: written in one stroke, sealed with a checksum, locked by one process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

SEAL = b"sha256:"
"""Begins the comment of a sealed archive; the checksum follows, in hexadecimal."""
SEAL_BYTES = len(SEAL) + 64


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls `write` on a temporary file beside `path`, flushes it to the disk and renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def seal(archive: bytes) -> bytes:
    """A zip archive, deflated, with the SHA-256 of what comes before as its comment.

    It stays a zip archive, and the same content gives the same bytes.
    """
    sealed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(sealed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry), zipfile.ZIP_DEFLATED, compresslevel=1)
        new.comment = bytes(SEAL_BYTES)
    content = sealed.getvalue()[:-SEAL_BYTES]
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


def flaw(sealed: bytes) -> str | None:
    """Why the bytes of a file that should be sealed cannot be trusted; None where they are as they were written."""
    content, comment = sealed[:-SEAL_BYTES], sealed[-SEAL_BYTES:]
    if not sealed:
        return "is empty"
    if not comment.startswith(SEAL):
        return "is cut short, or was not written by this project"
    if comment[len(SEAL) :] != hashlib.sha256(content).hexdigest().encode():
        return "does not match its checksum"
    return None


def numbered(folder: Path, name: str) -> dict[int, Path]:
    """The files `<name>_<number>.pt` in `folder`, by number, the lowest first."""
    found = {path: re.fullmatch(rf"{name}_(\d+)\.pt", path.name) for path in folder.glob(f"{name}_*.pt")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def with_state(checkpoints: Path) -> dict[int, tuple[Path, Path]]:
    """The checkpoints that one can go on from, the oldest first: iteration -> model and state."""
    models, states = (numbered(checkpoints, kind) for kind in ("model", "state"))
    return {iteration: (path, states[iteration]) for iteration, path in models.items() if iteration in states}


def lock(folder: Path) -> IO[str] | None:
    """Takes `folder` for this process until the file returned is closed, or the process ends. None where it is taken.

    Raises an OSError where the folder cannot be written to.
    """
    file = (folder / ".lock").open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    file.truncate(0)
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.write(file.fileno(), f"{os.getpid()}\n".encode())
    return file


def is_locked(folder: Path) -> bool:
    """Whether a process that lives has taken `folder`."""
    with contextlib.suppress(OSError), (folder / ".lock").open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def shown(path: Path) -> Path:
    """`path` as a person here would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
