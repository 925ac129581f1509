"""Imported by the process that `forked_runs.ForkedRun` forks from."""

from tests import forked_runs

forked_runs.build_envs()
