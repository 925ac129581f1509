"""Tests that share what takes long to make run in one process."""

import os

import pytest


def test_xdist_knows_the_group_that_conftest_puts_a_test_in(request: pytest.FixtureRequest) -> None:
    """It ignores groups without a word under a pytest that it does not know."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("the tests run in this process alone")
    group = request.node.get_closest_marker("xdist_group")
    assert group
    assert request.node.nodeid.endswith(f"@{group.args[0]}")
