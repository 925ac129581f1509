"""Lets much code load in less time. Standard library only.

A run loads some 5,000 modules, with 1,300 kernels and their functions. Python's collector of cycles walks through all
of them again and again, and finds next to nothing. And Quadrants asks `inspect` for each kernel which source file
defines it, which is importlib's; `inspect` looks for its module in vain, through all others, each time anew.
"""

from __future__ import annotations

import gc
import inspect


def begin() -> None:
    """To be called before anything large is imported. Until `end` no cycles are collected."""
    gc.disable()
    inspect.modulesbyfile.setdefault("<frozen importlib._bootstrap>", "importlib._bootstrap")  # its own notes


def end() -> None:
    """To be called when all is imported, which the collector then leaves alone for good. Nothing without `begin`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
