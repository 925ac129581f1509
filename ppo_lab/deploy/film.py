"""Films of trained policies: one env, followed by a camera. Several policies side by side begin at the same start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from ppo_lab.contracts import Looks
from ppo_lab.deploy import movie
from ppo_lab.deploy.camera import FollowingCamera, corners
from ppo_lab.deploy.grid import Picture, Size, columns_of, is_blank, tile_size, tiled
from ppo_lab.deploy.overlay import Caption, written
from ppo_lab.deploy.stage import filmed_env
from ppo_lab.deploy.trained import Trained
from ppo_lab.errors import RunFailedError, SimulatorError
from ppo_lab.machine.preflight import SYSTEM_PACKAGES
from ppo_lab.runs.events import show_film
from ppo_lab.runs.folder import checkpoint_name

if TYPE_CHECKING:
    from ppo_lab.contracts import FilmedEnv, Measurement, Policy, StepDetails
    from ppo_lab.learning.policy import ActorPolicy

MOMENTS = 6
"""Pictures in the contact sheet of one policy; of several, each has `MOMENTS_OF_EACH`."""
MOMENTS_OF_EACH = 4
MOST_MEASURED = 3
MEASURED_OVER_S = 0.5
"""Over which what is measured is averaged: single steps are too quick to read."""
ENDING_SHOWN_S = 1.0
LEAST_CHANGE = 3
"""Of any value of any picture since the first, of 0 to 255, or else nothing moved."""


class Plan(NamedTuple):
    """What is filmed, and how."""

    seconds: float
    fps: int
    size: Size
    """Of the whole film."""
    kinds: frozenset[str]
    """Of files: mp4, gif, png."""
    gif_fps: float
    gif_width_px: int
    seed: int
    driver: str
    """The name of what draws, for messages."""

    @property
    def frames(self) -> int:
        return round(self.seconds * self.fps)


class Made(NamedTuple):
    """What came of it."""

    files: list[Path]
    frames: int
    frames_per_s: float
    """Pictures of one policy each, drawn in a second of computing, without the start of the simulator."""


class Actor(NamedTuple):
    """A policy that is filmed."""

    title: str
    policy: Policy


def film(
    trained: Trained,
    files: Sequence[Path],
    plan: Plan,
    device: torch.device,
    into: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Made:
    """Films the policies of these checkpoints, and shows TensorBoard the GIF; see `shoot`.

    Raises:
        ConfigError: a checkpoint cannot be read, or the env cannot be filmed.
        RunFailedError: see `shoot`.
    """
    policies = [trained.policy(path, device) for path in files]
    actors = [Actor(_title(path, policy), policy) for path, policy in zip(files, policies, strict=True)]
    say(f"building {trained.cfg.env.name} with a camera")
    try:
        env = filmed_env(trained.cfg.env, device, plan.seed, Looks(*tile_size(plan.size, len(files))))
        made = shoot(env, actors, plan, into, say)
    except SimulatorError as error:
        raise RunFailedError(f"no film: {error}") from error
    for gif in (path for path in made.files if path.suffix == ".gif"):
        with Image.open(gif) as image:
            show_film(into.parent, into.name, gif, image.size, policies[-1].iteration or 0)
    return made


def _title(file: Path, policy: ActorPolicy) -> str:
    is_numbered = policy.iteration is not None and file.name == checkpoint_name("model", policy.iteration)
    return f"iteration {policy.iteration}" + ("" if is_numbered else f" ({file.stem})")


def shoot(
    env: FilmedEnv, actors: Sequence[Actor], plan: Plan, into: Path, say: Callable[[str], None] = lambda text: None
) -> Made:
    """Films the actors, each from the env as it is, into `into` with a suffix for each kind: into.mp4, into.gif.

    Raises a RunFailedError where the film would be blank, still, or not as asked; nothing of it is left then.
    """
    size, fps, start = tile_size(plan.size, len(actors)), Fraction(plan.fps), env.state()
    began_s = time.perf_counter()
    with TemporaryDirectory(prefix=".film_", dir=into.parent) as folder, torch.inference_mode():
        parts = [Path(folder, f"{number}.mkv") for number in range(len(actors))]
        try:
            for actor, part in zip(actors, parts, strict=True):
                say(f"filming {actor.title}")
                env.restore(start)
                with movie.lossless(part, fps, size) as writer:
                    for picture in _play(env, actor, plan, size):
                        writer.add(picture)
            frames_per_s = len(actors) * plan.frames / (time.perf_counter() - began_s)
            say("writing the film")
            made = _put_together(parts, plan, Path(folder, into.name))
        except av.FFmpegError as error:
            raise RunFailedError(f"no film: {into.parent} cannot be written to: {error.strerror}") from error
        return Made([path.replace(into.with_name(path.name)) for path in made], plan.frames, frames_per_s)


def _play(env: FilmedEnv, actor: Actor, plan: Plan, size: Size) -> Iterator[Picture]:
    """The pictures of one actor, from the env as it is. Raises a RunFailedError where there is nothing to see."""
    looks, dt = Looks(*size), env.spec.dt
    camera = FollowingCamera(looks.field_of_view_deg, size[0] / size[1])
    record = _Record(env)
    first: Picture | None = None
    has_changed = plan.frames == 1
    env.watch(record.add)
    try:
        steps = cuts = 0
        for number in range(1, plan.frames + 1):
            passed = max(steps + 1, round(number / plan.fps / dt)) - steps
            for _ in range(passed):
                if bool(env.step(actor.policy.mean(env.get_observations())).dones[0]):
                    record.end()
                    cuts = 2  # the env may show its new start a step later
            steps += passed
            if cuts:
                cuts -= 1
                camera.cut()
            box, targets = (part[0].double().cpu().numpy() for part in (env.robot_box(), env.get_targets()))
            in_view = np.concatenate([corners(box), targets])
            picture = env.picture(*(point.tolist() for point in camera.follow(in_view, passed * dt)))
            if is_blank(picture):
                raise RunFailedError(
                    _nothing(f"picture {number} of {actor.title} shows nothing: all of it is alike", plan)
                )
            first = picture if first is None else first
            has_changed = has_changed or int(np.abs(np.subtract(picture, first, dtype=np.int16)).max()) >= LEAST_CHANGE
            yield written(picture, record.caption(actor.title, steps * dt))
    finally:
        env.watch(None)
    if not has_changed:
        raise RunFailedError(_nothing(f"all {plan.frames} pictures of {actor.title} are the same", plan))


class _Record:
    """What the captions say of env 0: of the episode so far, and of how the last one ended."""

    def __init__(self, env: FilmedEnv) -> None:
        self._env, self._dt = env, env.spec.dt
        self._ended, self._since_end_s = "", math.inf
        self._terminations: list[str] = []
        self._reward = 0.0
        self._measured: dict[str, float] = {}

    def add(self, step: StepDetails) -> None:
        self._since_end_s += self._dt
        self._reward += sum(float(values[0]) for values in step.rewards.values())
        self._terminations = [name for name, ended in step.terminations.items() if bool(ended[0])]
        for name in _told(step.measurements):
            values, over_episode = step.measurements[name]
            self._measured[name] = self._went_on(self._measured.get(name), float(values[0]), over_episode)

    def _went_on(self, before: float | None, value: float, over_episode: str) -> float:
        if before is None:
            return value
        if over_episode == "mean":
            return before + (value - before) * min(1.0, self._dt / MEASURED_OVER_S)
        return before + value if over_episode == "sum" else max(before, value)

    def end(self) -> None:
        why = ", ".join(self._terminations).replace("_", " ")
        self._ended, self._since_end_s = f"ended: {why}, reward {self._reward:.2f}", 0.0
        self._reward, self._measured = 0.0, {}

    def caption(self, title: str, time_s: float) -> Caption:
        commands = dict(zip(self._env.commands, self._env.get_commands()[0].tolist(), strict=True))
        ended = self._ended if self._since_end_s < ENDING_SHOWN_S else ""
        return Caption(title, time_s, self._reward, commands, self._measured, ended)


def _told(measurements: Mapping[str, Measurement]) -> list[str]:
    """The names of those that a caption has room for: speeds first, then in the env's order."""
    names = [name for name, measurement in measurements.items() if measurement.over_episode != "first_s"]
    return sorted(names, key=lambda name: not name.startswith("speed"))[:MOST_MEASURED]


def _put_together(parts: Sequence[Path], plan: Plan, into: Path) -> list[Path]:
    """Writes the files of `plan` from the films of single policies. Raises a RunFailedError where one is wrong."""
    columns, fps = columns_of(len(parts)), Fraction(plan.fps)
    moments = np.linspace(0, plan.frames - 1, MOMENTS if len(parts) == 1 else MOMENTS_OF_EACH).round().astype(int)
    shown: list[list[Picture]] = []
    film = into.with_name(f"{into.name}.mp4")
    with movie.mp4(film, fps, plan.size) as writer:
        for number, tiles in enumerate(zip(*map(movie.pictures, parts), strict=True)):
            writer.add(tiled(tiles, columns, plan.size))
            shown += [list(tiles)] * list(moments).count(number)
    if flaw := movie.flaw(film, plan.frames, plan.size, plan.frames / plan.fps):
        raise RunFailedError(f"no film: the file {flaw}. Try: pip install --force-reinstall av")
    made = [film] if "mp4" in plan.kinds else []
    if "gif" in plan.kinds:
        samples = [tiled(tiles, columns, plan.size) for tiles in shown]
        made.append(into.with_name(f"{into.name}.gif"))
        every = max(1, round(plan.fps / plan.gif_fps))
        movie.write_gif(made[-1], film, samples, fps, every, plan.gif_width_px)
    if "png" in plan.kinds:
        made.append(into.with_name(f"{into.name}.png"))
        Image.fromarray(_contact_sheet(shown)).save(made[-1])
    return made


def _contact_sheet(shown: Sequence[Sequence[Picture]]) -> Picture:
    """Of the pictures at some moments: a row for each of several policies; of one, as many columns as a grid has."""
    by_policy = list(zip(*shown, strict=True))
    if len(by_policy) == 1:
        return tiled(by_policy[0], columns_of(len(shown)))
    return tiled([picture for row in by_policy for picture in row], len(shown))


def _nothing(what: str, plan: Plan) -> str:
    return f"no film: {what}. OpenGL draws by {plan.driver}. Try: apt-get install --reinstall {SYSTEM_PACKAGES}"
