"""Whether OpenGL draws is asked of the driver itself."""

import os
import sys

import pytest

from ppo_lab.errors import MachineError
from ppo_lab.machine import opengl


def test_the_driver_that_draws_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(opengl.PLATFORM, raising=False)
    assert opengl.check()
    assert os.environ[opengl.PLATFORM] == "egl", "the simulator's cameras use what was asked"


def test_where_no_driver_works_the_packages_with_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(opengl.PLATFORM, raising=False)
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nowhere")
    with pytest.raises(MachineError, match=r"^no OpenGL driver draws .*: EGL finds no device; .* libgl1-mesa-dri"):
        opengl.check()


def test_a_driver_that_ends_its_process_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(opengl.PLATFORM, raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MachineError, match=r"^no OpenGL driver draws without a screen here: it ended with code 1; "):
        opengl.check()


def test_a_platform_that_the_user_chose_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(opengl.PLATFORM, "osmesa")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nowhere")
    assert opengl.check() == "osmesa"
