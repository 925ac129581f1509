"""Every error that a user can meet, and the exit code that says so. Standard library only."""

from __future__ import annotations

import enum
import signal


class ConfigError(ValueError):
    """A configuration that cannot be run; the text says what, what was got, what is allowed and how to fix it."""


class RunFailedError(RuntimeError):
    """The run ended early; the text says why, and where to look."""


class StoppedError(BaseException):
    """A signal other than Ctrl-C stopped the run. Like KeyboardInterrupt, it is no Exception, which means a failure."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.exit_code = STOPS[received]


class NothingToDo(Exception):
    """What was asked for is done already; the text says so."""


class NotReproducedError(RuntimeError):
    """A run was repeated, or its policy exported, and came out different; the text says where."""


class OverBudgetError(RuntimeError):
    """The run is predicted not to fit; the text says by how much, and what would."""


class ExitCode(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    WRONG_INPUT = 2
    OVER_BUDGET = 3
    REQUEUE = 75
    """Stopped by SIGTERM or SIGUSR1 after a checkpoint; the number is EX_TEMPFAIL of sysexits.h: try again."""
    HANGUP = 129
    """The same, as the terminal was closed or the connection to it dropped: 128 and the number of SIGHUP."""
    INTERRUPTED = 130
    """The same by Ctrl-C."""


STOPS = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.REQUEUE,
    signal.SIGUSR1: ExitCode.REQUEUE,
    signal.SIGHUP: ExitCode.HANGUP,
}
"""The signals that stop a run after a checkpoint, and the exit codes that say so."""


class MachineError(RuntimeError):
    """The machine lacks something; the text says what, and the command that fixes it."""


class RankLostError(RuntimeError):
    """Another process of this run is gone; the text says which, and how, where that is known."""


class SimulatorError(RuntimeError):
    """The simulator could not do its work; the text says why, and the setting to change."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the text says which and why."""


class MeasurementError(RuntimeError):
    """The env could not be built and counted; the text ends with what its process said."""
