"""Signals that stop a run."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ppo_lab.command_line import StoppedError

log = logging.getLogger(__name__)


class StopSignals:
    """While entered, Ctrl-C, SIGTERM and SIGUSR1 stop the run: within `after_the_iteration` the first is a request."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._patient = False

    def requested(self) -> bool:
        return self._received is not None

    def stop(self) -> None:
        """Raises what belongs to the signal: KeyboardInterrupt for Ctrl-C, or else a StoppedError."""
        if self._received in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise StoppedError(f"{self._received.name}; resume=auto or resume=FOLDER goes on")

    @contextmanager
    def after_the_iteration(self) -> Iterator[None]:
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self._received is None
        self._received = signal.Signals(signum)
        if not (first and self._patient):
            self.stop()
        log.info("%s: finishing this iteration, then saving; again stops at once", self._received.name)
