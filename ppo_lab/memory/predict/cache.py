"""The user's cache folder, which may be deleted at any time, and the traces that are stored in it."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

from ppo_lab.memory.rows import MIB
from ppo_lab.runs.files import write_atomically

MOST_TRACE_BYTES = 200 * MIB
"""Of all stored traces, on the disk. The least recently used go first."""
MOST_TRACE_FILES = 4096
MOST_TEXT_BYTES = 256 * MIB
"""Of one trace, unpacked: a larger file is not one of ours."""


def folder() -> Path:
    """Where everything is kept that can be worked out or measured again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppo-lab"


def load_trace(key: dict[str, Any]) -> Any:
    """The JSON content that `save_trace` stored for `key`; None where there is none that is whole and of that key."""
    file = _trace_file(key)
    try:
        unpacker = zlib.decompressobj(wbits=31)
        text = unpacker.decompress(file.read_bytes(), MOST_TEXT_BYTES)
        if not unpacker.eof:  # cut short, or too large
            return None
        content = json.loads(text)
    except (OSError, ValueError, zlib.error, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("key") != key:
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # used now
    return content.get("trace")


def save_trace(key: dict[str, Any], trace: Any) -> None:
    """Stores JSON content under `key`, and deletes the least recently used traces beyond the bounds.

    A folder that cannot be written to is no error: the trace is made again next time.
    """
    file = _trace_file(key)
    text = json.dumps({"key": key, "trace": trace})
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda opened: opened.write(gzip.compress(text.encode(), mtime=0)))
        _delete_least_recently_used(file.parent)


def _trace_file(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder() / "traces" / f"{digest[:32]}.json.gz"


def _delete_least_recently_used(traces: Path) -> None:
    found = []
    for file in traces.glob("*.json.gz"):
        with contextlib.suppress(OSError):  # another process has deleted it
            status = file.stat()
            found.append((status.st_mtime_ns, status.st_size, file))
    kept_bytes = 0
    for number, (_, size, file) in enumerate(sorted(found, reverse=True)):
        kept_bytes += size
        if kept_bytes > MOST_TRACE_BYTES or number >= MOST_TRACE_FILES:
            file.unlink(missing_ok=True)
