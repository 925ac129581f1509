"""Signals that stop a run."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

import psutil

from ppo_lab.errors import STOPS, StoppedError

log = logging.getLogger(__name__)

AGAIN_AFTER_S = 1.0
"""A signal that comes sooner after the first is the first once more: shells and `timeout` send theirs twice."""


def stop_at_once() -> None:
    """From now on a signal that stops runs ends the process, until `StopSignals` is entered."""

    def stop(received: int, _: FrameType | None) -> None:
        for child in psutil.Process().children(recursive=True):  # the estimate, which nobody waits for any more
            child.kill()
        raise_what_belongs_to(signal.Signals(received))

    for number in heeded():
        signal.signal(number, stop)


def heeded() -> list[signal.Signals]:
    """The signals that stop runs. Not SIGHUP where it is ignored from the start, as under nohup."""
    return [number for number in STOPS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def raise_what_belongs_to(received: signal.Signals) -> None:
    """Raises a KeyboardInterrupt for Ctrl-C, or else a StoppedError."""
    if received == signal.SIGINT:
        raise KeyboardInterrupt
    raise StoppedError(received)


class StopRequest:
    """While entered, a signal that stops runs is a request, and one that comes again later asks for it at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at_once = False
        self._received_s = 0.0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in heeded()}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def react(self) -> None:
        """Called when a signal has made a difference."""

    def _handle(self, signum: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        if self.signal is None:
            self.signal, self._received_s = signal.Signals(signum), now_s
            self.react()
        elif signum != signal.SIGHUP and now_s - self._received_s > AGAIN_AFTER_S:
            self.at_once = True
            self.react()


class StopSignals(StopRequest):
    """Stops a run: within `after_the_iteration` a first signal only asks for it."""

    _is_patient = False

    def requested(self) -> bool:
        return self.signal is not None

    def stop(self) -> None:
        """Raises what belongs to the signal."""
        raise_what_belongs_to(self.signal or signal.SIGINT)

    @contextmanager
    def after_the_iteration(self) -> Iterator[None]:
        self._is_patient = True
        try:
            yield
        finally:
            self._is_patient = False

    def react(self) -> None:
        if self.at_once or not self._is_patient:
            self.stop()
        assert self.signal
        log.info("%s: finishing this iteration, then saving; again stops at once", self.signal.name)
