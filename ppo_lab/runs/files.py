"""Files that no reader finds half-written: renamed into place, and sealed with a checksum."""

from __future__ import annotations

import hashlib
import io
import json
import math
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


def to_json(content: Any, indent: int | None = None) -> str:
    """`content` as JSON. NaN and the infinities, which JSON does not have, become null."""
    return json.dumps(_non_finite_as_none(content), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """What `text` says. NaN and the infinities, which older files may hold, are None. Raises a ValueError."""
    try:
        return _non_finite_as_none(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, to_json(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    try:
        content = from_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _non_finite_as_none(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _non_finite_as_none(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_non_finite_as_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


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


def damage(sealed: bytes) -> str | None:
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
