"""Ends a command with one message and an exit code."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ppo_lab.errors import (
    ConfigError,
    ExitCode,
    MachineError,
    NothingToDo,
    NotReproducedError,
    OverBudgetError,
    RunFailedError,
    StoppedError,
)
from ppo_lab.machine import streams


@contextmanager
def exit_codes(output_may_fail: bool = False) -> Iterator[None]:
    """Ends the process with one message and the exit code that belongs to what went wrong.

    `output_may_fail`: what cannot be printed, as on a full disk, is dropped.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through
    logging.raiseExceptions = False  # a log that cannot be written ends nothing
    streams.outlive_readers(and_full_disks=output_may_fail)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (ConfigError, MachineError, HydraException, OmegaConfBaseException) as error:
        _exit(ExitCode.WRONG_INPUT, f"error: {error}")
    except NothingToDo as done:
        _exit(ExitCode.DONE, str(done))
    except KeyboardInterrupt:
        _exit(ExitCode.INTERRUPTED, "interrupted")
    except OverBudgetError as error:
        _exit(ExitCode.OVER_BUDGET, f"error: {error}")
    except StoppedError as stopped:
        _exit(stopped.exit_code, f"stopped: {stopped}")
    except (RunFailedError, NotReproducedError) as error:
        _exit(ExitCode.FAILED, f"error: {error}")
    except OSError as error:
        logging.getLogger(__name__).debug("the run failed", exc_info=True)
        where = f"{error.filename}: " if error.filename else ""
        _exit(ExitCode.FAILED, f"error: {where}{error.strerror or error}")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as a ConfigError."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help.")


def _exit(code: ExitCode, message: str) -> NoReturn:
    logging.shutdown()
    print("".join(c if c.isprintable() else " " for c in message.strip()), file=sys.stderr)
    sys.exit(code)
