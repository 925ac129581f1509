"""The values that a setting admits. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

INT32_MAX = 2**31 - 1
"""The simulator and BLAS count in 32 bits."""


FLOAT32_MAX = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True)
class Range:
    """The values that a setting admits. Applies to each item of a list or mapping."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    choices: tuple[str, ...] = ()
    pattern: str | None = None
    examples: tuple[str, ...] = ()
    """What a text that matches the pattern looks like."""
    items: int | None = None
    """Length of a list; otherwise a list needs one item at least."""

    def admits(self, value: Any) -> bool:
        match value:
            case dict():
                return all(map(self._admits_item, value.values()))
            case list():
                has_items = len(value) > 0 if self.items is None else len(value) == self.items
                return has_items and all(map(self._admits_item, value))
            case str():
                return (not self.choices or value in self.choices) and (
                    self.pattern is None or re.fullmatch(self.pattern, value) is not None
                )
            case int() | float():
                return (
                    abs(value) <= FLOAT32_MAX
                    and (self.at_least is None or value >= self.at_least)
                    and (self.above is None or value > self.above)
                    and (self.at_most is None or value <= self.at_most)
                )
        return True

    def _admits_item(self, value: Any) -> bool:
        return not isinstance(value, dict | list) and self.admits(value)

    def __str__(self) -> str:
        parts = [
            self.items is not None and f"a list of {self.items}",
            self.choices and "one of " + ", ".join(self.choices),
            (self.examples and "text like " + ", ".join(self.examples))
            or (self.pattern and f"text that matches {self.pattern}"),
            self.at_least is not None and f">= {self.at_least:.10g}",
            self.above is not None and f"> {self.above:.10g}",
            self.at_most is not None and f"<= {self.at_most:.10g}",
        ]
        return ", ".join(part for part in parts if part) or "finite, in 32 bits"


def setting(*, default_factory: Callable[[], Any] | None = None, **allowed: Any) -> Any:
    """A field that must lie within `Range(**allowed)`, and must be given, but where there is a default."""
    metadata = {"range": Range(**allowed)}
    if default_factory:
        return field(default_factory=default_factory, kw_only=True, metadata=metadata)  # a subclass has more fields
    return field(metadata=metadata)


def count() -> Any:
    """A field that must be given, a number of things."""
    return setting(at_least=1, at_most=INT32_MAX)
