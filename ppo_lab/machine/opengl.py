"""Whether OpenGL can draw without a screen: the driver's name, or why there is none. Standard library only.

`python -m ppo_lab.machine.opengl` makes a context by EGL, as the simulator's cameras do, and prints the driver's name.
It is asked in a process of its own, which a broken driver may end.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

from ppo_lab.errors import MachineError
from ppo_lab.machine import preflight

PLATFORM = "PYOPENGL_PLATFORM"
"""The variable by which the simulator's cameras choose how they reach OpenGL: egl, which needs no screen, or others."""
TIMEOUT_S = 60

EXTENSIONS, VENDOR_OF_DEVICE = 0x3055, 0x313F
RENDERER = 0x1F01
OPENGL_API = 0x30A2
SURFACELESS = (0x3033, 0x0001, 0x3022, 8, 0x3023, 8, 0x3024, 8, 0x3025, 24, 0x3040, 0x0008, 0x3038)
"""EGL_SURFACE_TYPE pbuffer; 8 bits of blue, green and red, 24 of depth; EGL_RENDERABLE_TYPE OpenGL; the end."""
VERSION_4_1_CORE = (0x3098, 4, 0x30FB, 1, 0x30FD, 0x0001, 0x3038)


def check() -> str:
    """The name of the OpenGL driver that draws without a screen. Raises a MachineError where none does.

    A platform that the user has chosen in PYOPENGL_PLATFORM is used, and not asked.
    """
    preflight.check_system_libraries()
    if os.environ.setdefault(PLATFORM, "egl") != "egl":
        return os.environ[PLATFORM]
    try:
        asked = [sys.executable, "-m", "ppo_lab.machine.opengl"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise _no_driver(f"it did not answer within {TIMEOUT_S} s") from None
    if answer.returncode or not answer.stdout.strip():
        said = answer.stderr.strip().splitlines()
        raise _no_driver(said[-1] if said else f"it ended with code {answer.returncode}")
    return answer.stdout.strip()


def _no_driver(why: str) -> MachineError:
    return MachineError(
        f"no OpenGL driver draws without a screen here: {why}; a software driver does on every machine: "
        f"apt-get install {preflight.SYSTEM_PACKAGES} (Debian, Ubuntu; as root)"
    )


def driver() -> str:
    """The name of the driver of the first device that works. Raises an OSError."""
    egl = ctypes.CDLL("libEGL.so.1")
    for name in ("eglGetProcAddress", "eglGetDisplay", "eglCreateContext"):
        getattr(egl, name).restype = ctypes.c_void_p
    errors = []
    for display in _displays(egl):
        try:
            return _driver_of(egl, ctypes.c_void_p(display))
        except OSError as error:
            errors.append(str(error))
    raise OSError("; ".join(dict.fromkeys(errors)) or "EGL finds no device")


def _displays(egl: ctypes.CDLL) -> Iterator[int | None]:
    """One of each device, or the default one where EGL does not tell its devices."""
    query, of_platform = (egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT"))
    if not query or not of_platform:
        yield egl.eglGetDisplay(None)
        return
    count = ctypes.c_int()
    devices = (ctypes.c_void_p * 32)()
    arguments = ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)
    if ctypes.CFUNCTYPE(ctypes.c_uint, *arguments)(query)(len(devices), devices, ctypes.byref(count)):
        function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)
        for device in devices[: count.value]:
            yield function(of_platform)(VENDOR_OF_DEVICE, device, None)


def _driver_of(egl: ctypes.CDLL, display: ctypes.c_void_p) -> str:
    config, count = ctypes.c_void_p(), ctypes.c_int()

    def must(what: str, done: int | None) -> int:
        if not done:
            raise OSError(f"{what} failed with EGL error {egl.eglGetError():#x}")
        return done

    must("eglInitialize", egl.eglInitialize(display, None, None))
    must("eglBindAPI", egl.eglBindAPI(OPENGL_API))
    wanted = (ctypes.c_int * len(SURFACELESS))(*SURFACELESS)
    must("eglChooseConfig", egl.eglChooseConfig(display, wanted, ctypes.byref(config), 1, ctypes.byref(count)))
    version = (ctypes.c_int * len(VERSION_4_1_CORE))(*VERSION_4_1_CORE)
    made = must("eglCreateContext (OpenGL 4.1)", egl.eglCreateContext(display, config, None, version))
    must("eglMakeCurrent", egl.eglMakeCurrent(display, None, None, ctypes.c_void_p(made)))
    get_string = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_uint)(egl.eglGetProcAddress(b"glGetString"))
    name: bytes | None = get_string(RENDERER)
    if not name:
        raise OSError("OpenGL does not tell its driver's name")
    return name.decode(errors="replace")


if __name__ == "__main__":
    try:
        print(driver())
    except OSError as error:
        sys.exit(str(error))
