"""Reads a pickle of plain data, and refuses any other before a step of it has run.

A pickle is a program, and `pickle.load` runs what its author wrote. This is the one file that may import pickle: old
runs keep their settings in nothing else. Two locks: only opcodes that build plain data are let through, read off
beforehand without executing any; and the unpickler that then runs knows no names.
"""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
from typing import Any, NoReturn

from ppo_lab.errors import ConfigError

MAX_BYTES = 2**20
"""The examples' cfgs.pkl has 2 kB."""
MAX_DEPTH = 8
MAX_WIDTH = 10_000

PLAIN = set(
    "PROTO FRAME STOP MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 "
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS".split()
)
"""The opcodes that build None, bool, int, float, str, list, tuple and dict."""


class NotPlainError(ConfigError):
    """The bytes are no pickle of plain data; the text says why."""


class PlainUnpickler(pickle.Unpickler):
    """Finds no class and no function."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise NotPlainError(f"it asks for {module_name}.{global_name}, which is no plain data")


def load(data: bytes) -> Any:
    """The dicts, lists, tuples, texts, numbers, bools and Nones that `data` pickles. Raises a NotPlainError."""
    if len(data) > MAX_BYTES:
        raise NotPlainError(f"it is larger than {MAX_BYTES:,} bytes")
    try:
        _refuse_all_but_plain(data)
        found = PlainUnpickler(io.BytesIO(data)).load()
    except NotPlainError:
        raise
    except Exception as error:  # of whatever kind: the bytes are somebody else's, and pickle promises none
        raise NotPlainError(f"it is not a whole pickle ({type(error).__name__})") from None
    _refuse_endless(found)
    return found


def _refuse_all_but_plain(data: bytes) -> None:
    texts: list[str] = []
    argument: Any
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            name = ".".join(texts[-2:]) if argument is None else argument.replace(" ", ".")
            raise NotPlainError(f"it asks for {name!r}, which is no plain data")
        if opcode.name not in PLAIN:
            raise NotPlainError(f"it holds the opcode {opcode.name}, which builds no plain data")
        if opcode.name in ("PUT", "LONG_BINPUT") and not 0 <= argument < len(data):
            raise NotPlainError(f"it numbers a value {argument}, which would fill the memory")
        if isinstance(argument, str):
            texts.append(argument)


def _refuse_endless(found: Any) -> None:
    """References make a short pickle unfold to a long value, or hold itself."""
    level = [found]
    for _ in range(MAX_DEPTH):
        level = list(itertools.islice(itertools.chain.from_iterable(map(_children, level)), MAX_WIDTH + 1))
        if len(level) > MAX_WIDTH:
            raise NotPlainError(f"it unfolds to more than {MAX_WIDTH:,} values")
    if level:
        raise NotPlainError(f"it is nested deeper than {MAX_DEPTH} levels")


def _children(value: Any) -> list[Any]:
    match value:
        case dict():
            return [*value.keys(), *value.values()]
        case list() | tuple():
            return list(value)
    return []
