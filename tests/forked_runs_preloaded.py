"""Imported by the process that `lives.Life` forks from."""

from tests import lives

lives.build_envs()
