"""`ppo-lab film RUN`: films a run's policies into its folder, without a screen."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from ppo_lab.cli import on_run, waiting
from ppo_lab.config import setting
from ppo_lab.errors import ConfigError, MachineError, RunFailedError
from ppo_lab.machine import devices, opengl
from ppo_lab.machine.commands import relative_to_cwd
from ppo_lab.runs.folder import RunFolder, make_part

SMALLEST_PX = 96
"""Of a picture, so that its text can be read."""


@dataclass
class Filming:
    """What is asked of a run. Values are in conf/commands/film.yaml."""

    checkpoint: str = on_run.checkpoints()
    seconds: float = setting(above=0, at_most=3600)
    fps: int = setting(at_least=1, at_most=1000)
    width: int = setting(at_least=SMALLEST_PX, at_most=4096)
    height: int = setting(at_least=SMALLEST_PX, at_most=4096)
    files: list[str] = setting(choices=("mp4", "gif", "png"))
    gif_fps: float = setting(above=0, at_most=50)
    gif_width: int = setting(at_least=16, at_most=4096)
    seed: int = on_run.seed()
    device: str = on_run.device()
    name: str | None = setting(pattern=r"\w[\w.-]*", examples=("best", "on_ice"))


def main(argv: list[str]) -> None:
    """Raises a ConfigError, or a RunFailedError where no film came of it."""
    began_s = time.perf_counter()
    trained, asked = on_run.read(
        [re.sub("^checkpoints=", "checkpoint=", argument) for argument in argv], "film", Filming
    )
    checkpoints = trained.checkpoints(asked.checkpoint)
    _check_pictures(asked, len(checkpoints), trained.cfg.env.dt)
    into = make_part(RunFolder(trained.folder).films) / (asked.name or asked.checkpoint)
    try:
        driver = opengl.check()
    except MachineError as error:
        raise RunFailedError(f"no film: {error}") from None
    from ppo_lab.deploy import film  # loads torch

    device = devices.resolve_device(asked.device)
    plan = film.Plan(
        seconds=asked.seconds,
        fps=asked.fps,
        size=(asked.width, asked.height),
        kinds=frozenset(asked.files),
        gif_fps=asked.gif_fps,
        gif_width_px=asked.gif_width,
        seed=asked.seed,
        driver=driver,
    )
    with waiting.shown(else_lines=True) as say:
        made = film.film(trained, checkpoints, plan, device, into, say)
    for path in made.files:
        print(f"written: {relative_to_cwd(path)} ({path.stat().st_size / 1e6:.2f} MB)")
    print(
        f"{made.frames} frames of {asked.width} x {asked.height}, {made.frames / asked.fps:g} s, "
        f"in {time.perf_counter() - began_s:.0f} s; {made.frames_per_s:.1f} pictures/s, drawn by {driver}"
    )


def _check_pictures(asked: Filming, count: int, dt: float) -> None:
    """Raises a ConfigError where pictures of this size cannot be made, or more than the env has steps."""
    from ppo_lab.deploy.grid import tile_size

    if odd := [f"{name}={size}" for name, size in (("width", asked.width), ("height", asked.height)) if size % 2]:
        raise ConfigError(f"{' and '.join(odd)}: H.264 needs even sizes.")
    if round(asked.seconds * asked.fps) < 1:
        raise ConfigError(f"seconds={asked.seconds:g} with fps={asked.fps} is no frame. Try seconds={1 / asked.fps:g}.")
    if asked.fps * dt > 1 + 1e-6:
        raise ConfigError(f"fps={asked.fps}: the env has {1 / dt:g} steps in a second. Allowed: at most {int(1 / dt)}.")
    width, height = tile_size((asked.width, asked.height), count)
    if min(width, height) < SMALLEST_PX:
        raise ConfigError(
            f"checkpoint={asked.checkpoint}: each of {count} policies would get {width} x {height} pixels of "
            f"{asked.width} x {asked.height}; {SMALLEST_PX} are needed. Try a larger film, or fewer checkpoints."
        )
