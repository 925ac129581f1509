"""What a browser shows of a session, and what it asks of it. The only module that uses viser."""

from __future__ import annotations

import contextlib
import html
import io
import math
import queue
import random
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import viser

from ppo_lab.deploy.viewer.session import REWARD, Session
from ppo_lab.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ppo_lab.contracts import VisibleEnv

HOST = "127.0.0.1"
KEYS = (("W", "S"), ("A", "D"), ("Q", "E"))
"""More and less of the first, second and third rate among the commands."""
KEY_STEP = 0.1
"""Of a command, for one stroke of a key."""
AXES = ("_x_m", "_y_m", "_z_m")
"""Ends of the names of three commands that are a position, which is then a target to be dragged."""
PUSH_M_S = 0.5
MORE, LESS = "#2f9e44", "#e03131"
"""Colours of what adds to the reward and what takes from it."""
SMOOTHING = 0.2
"""Share of the way to the robot that a following camera goes in a frame: the robot's gait does not shake it."""
JUMP_M = 0.5
"""A robot that is farther away was reset, and the camera is there at once."""


OURS_ALONE = (
    '<img alt="" src="data:," style="display:none" onerror="document.documentElement.addEventListener('
    "'keydown', event => /^Key[WASDQE]$/.test(event.code) && event.stopPropagation())\">"
)
"""Keeps the keys that drive from viser's camera, which they move, too, and which has no switch for that."""


class _Server(viser.ViserServer):
    """Never asks viser's servers for an address under which the whole internet could see the page."""

    def request_share_url(self, verbose: bool = True) -> None:
        return None


class Page:
    """A server for one page. Its callbacks put what they are asked for into `requests`, for the session's thread."""

    def __init__(self, env: VisibleEnv, session: Session, title: str, port: int, has_shadows: bool) -> None:
        """Serves on this machine alone, on `port` or the next that is free. Raises a ConfigError where none is."""
        self.requests: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self.port = free_port(port)
        self._env = env
        self._session = session
        with contextlib.redirect_stdout(io.StringIO()):  # it prints addresses of its own
            self._server = _Server(HOST, self.port, label=title, verbose=False)
        self._server.scene.configure_default_lights(cast_shadow=has_shadows)
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._follows = True
        self._target: viser.TransformControlsHandle | None = None
        self._center: NDArray[np.float64] = env.poses()[0][0]
        self._world = self._server.scene.add_frame("/world", show_axes=False, position=-self._center)
        self._bodies = [self._add_body(number, shape) for number, shape in enumerate(env.shapes())]
        self._server.initial_camera.position = (-1.2, -1.4, 0.8)
        self._server.initial_camera.look_at = (0.0, 0.0, 0.0)
        self._add_controls(has_shadows)
        self._add_commands()
        self._add_results()

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._server.stop()

    def draw(self) -> None:
        """Sends where the bodies are."""
        positions, quats = self._env.poses()
        with self._server.atomic():
            for body, position, quat in zip(self._bodies, positions, quats, strict=True):
                if body is not None:
                    body.position, body.wxyz = position, quat
            if self._follows:
                away = positions[0] - self._center
                self._center = self._center + away * (1.0 if np.linalg.norm(away) > JUMP_M else SMOOTHING)
                self._world.position = -self._center

    def tell(self, pace: float) -> None:
        """Sends numbers, bars and curves. `pace`: times real time."""
        session = self._session
        self._status.content = status(session, pace)
        self._pause.label = "Continue" if session.is_paused else "Pause"
        if self._checkpoint.options != tuple(session.names):
            self._checkpoint.options = tuple(session.names)
        _set(self._checkpoint, session.playing)
        commands = session.commands
        for name, slider in self._sliders.items():
            low, high = session.ranges[name]
            _set(slider, round(min(max(commands[name], low), high), 3))
        if self._sliders:
            _set(self._drawn, not session.is_held)
        if self._target is not None:
            position = np.array([commands[name] for name in self._position_names])
            if np.abs(position - self._target.position).max() > 1e-3:  # not what is being dragged
                self._target.position = position
        self._bars.content = bars(session.rewards())
        for choice, plot in self._plots:
            self._plot(choice, plot)

    def _add_body(self, number: int, glb: bytes) -> viser.FrameHandle | None:
        """A frame with what the body looks like; None where there is nothing to see."""
        if not glb:
            return None
        frame = self._server.scene.add_frame(f"/world/{number}", show_axes=False)
        self._server.scene.add_glb(f"/world/{number}/shape", glb)
        return frame

    def _add_controls(self, has_shadows: bool) -> None:
        gui, session = self._server.gui, self._session
        gui.main_panel.dock_right()
        self._status = gui.add_html(status(session, 0.0))
        self._checkpoint = gui.add_dropdown("Checkpoint", session.names, initial_value=session.playing)
        self._pause = gui.add_button("Pause", hint="Key P")
        step = gui.add_button("Step", hint="Pauses, and steps once. Key N")
        reset = gui.add_button("Reset", hint="Begins a new episode. Key R")
        speed = gui.add_slider(
            "Speed", 0.1, 4.0, 0.1, initial_value=session.speed, hint="Times real time, where the simulator keeps up"
        )
        follow = gui.add_checkbox("Camera follows", initial_value=True)
        shadows = gui.add_checkbox(
            "Shadows", has_shadows, hint="Without them a browser that has no GPU draws twice as fast"
        )
        strength = gui.add_slider("Push, m/s", 0.1, 3.0, 0.1, initial_value=PUSH_M_S)
        push = gui.add_button(
            "Push", hint="Changes the base's velocity by that, in a random horizontal direction. Key B"
        )

        def shove() -> None:
            angle = random.uniform(-math.pi, math.pi)
            self._env.push((strength.value * math.cos(angle), strength.value * math.sin(angle), 0.0))

        self._checkpoint.on_update(self._ask_with_value(session.play))
        speed.on_update(self._ask_with_value(partial(setattr, session, "speed")))
        shadows.on_update(self._ask_with_value(partial(self._server.scene.configure_default_lights, True)))
        follow.on_update(self._ask_with_value(partial(setattr, self, "_follows")))
        for button, key, what in (
            (self._pause, "P", session.toggle_pause),
            (step, "N", session.single_step),
            (reset, "R", session.reset),
            (push, "B", shove),
        ):
            button.on_click(self._ask(what))
            self._add_key(key, button.label, what)

    def _add_commands(self) -> None:
        gui, session = self._server.gui, self._session
        self._sliders: dict[str, viser.GuiSliderHandle[float]] = {}
        if not session.ranges:
            return
        with gui.add_folder("Commands"):
            self._drawn = gui.add_checkbox("As trained", True, hint="The env draws them; no longer once you give one")
            self._drawn.on_update(self._ask_with_value(self._draw_or_hold))
            for name, (low, high) in session.ranges.items():
                trained = self._env.commands[name]
                hint = f"In training from {trained[0]:g} to {trained[1]:g}"
                self._sliders[name] = gui.add_slider(name, low, high, 0.05, initial_value=low, hint=hint)
                self._sliders[name].on_update(self._ask_with_value(partial(self._give, name)))
            self._add_keys([name for name in session.ranges if name.endswith("_s")])
            self._position_names = [name for end in AXES for name in session.ranges if name.endswith(end)]
            if len(self._position_names) == len(AXES):
                self._add_target()

    def _add_keys(self, rates: Sequence[str]) -> None:
        """Keys that drive: they change commands that are rates."""
        if not rates:
            return
        driven = dict(zip(rates, KEYS, strict=False))
        for name, (more, less) in driven.items():
            self._add_key(more, f"more {name}", partial(self._session.change_command, name, KEY_STEP))
            self._add_key(less, f"less {name}", partial(self._session.change_command, name, -KEY_STEP))
        self._add_key("X", "stop", partial(self._session.command, dict.fromkeys(driven, 0.0)))
        keys = ", ".join(f"{more} {less} {name}" for name, (more, less) in driven.items())
        self._server.gui.add_html(OURS_ALONE + small(f"Keys: {keys}, X stop"))

    def _add_target(self) -> None:
        self._target = self._server.scene.add_transform_controls(
            "/world/target", scale=0.3, disable_rotations=True, depth_test=False
        )
        self._server.scene.add_icosphere("/world/target/ball", radius=0.04, color=(224, 49, 49))
        self._server.gui.add_html(small("Or drag the target in the scene."))

        async def drag(event: viser.TransformControlsEvent) -> None:
            position = dict(zip(self._position_names, event.target.position.tolist(), strict=True))
            self.requests.put(partial(self._session.command, position))

        self._target.on_update(drag)

    def _add_results(self) -> None:
        gui = self._server.gui
        panel = gui.add_panel()
        with panel.add_tab("Reward and curves"):
            self._bars = gui.add_html("")
            self._plots = [self._add_plot(name) for name in two_curves(self._session.measurements)]
        panel.dock_left()

    def _add_plot(self, name: str) -> tuple[viser.GuiDropdownHandle[str], viser.GuiUplotHandle]:
        """A curve of what the dropdown above it names, at first `name`."""
        gui = self._server.gui
        choice: viser.GuiDropdownHandle[str] = gui.add_dropdown("Curve", self._session.measurements, initial_value=name)
        plot = gui.add_uplot(
            (np.array([-1.0, 0.0]), np.array([0.0, 0.0])),
            (viser.uplot.Series(label="s"), viser.uplot.Series(label="now", stroke="#1971c2", width=1.5)),
            scales={"x": viser.uplot.Scale(time=False, auto=False, range=(-10.0, 0.0))},
            legend=viser.uplot.Legend(show=False),
            height=150,
            padding=(12, 24, 0, 0),
        )
        return choice, plot

    def _plot(self, choice: viser.GuiDropdownHandle[str], plot: viser.GuiUplotHandle) -> None:
        times, values = self._session.curve(choice.value)
        if len(times) > 1:
            plot.data = (np.array(times), np.array(values))

    def _give(self, name: str, value: float) -> None:
        self._session.command({name: value})

    def _draw_or_hold(self, is_drawn: bool) -> None:
        if is_drawn:
            self._session.let_draw_commands()
        else:
            self._session.command({})

    def _ask(self, what: Callable[[], Any]) -> Callable[[Any], Coroutine[Any, Any, None]]:
        async def callback(event: Any) -> None:
            self.requests.put(what)

        return callback

    def _ask_with_value(self, what: Callable[[Any], Any]) -> Callable[[Any], Coroutine[Any, Any, None]]:
        async def callback(event: Any) -> None:
            if event.client is not None:  # or else `tell` has set it
                self.requests.put(partial(what, event.target.value))

        return callback

    def _add_key(self, key: Any, what: str, do: Callable[[], Any]) -> None:
        self._server.gui.add_command(what, hotkey=key).on_trigger(self._ask(do))


def _set(handle: Any, value: Any) -> None:
    """Shows `value`, which mypy takes for read-only."""
    handle.value = value


def two_curves(names: Sequence[str]) -> tuple[str, str]:
    """Those to begin with: a speed and a torque where there are such, or else the first two."""
    measured = sorted(names, key=lambda name: name == REWARD)
    speed = next((name for name in measured if "speed" in name), measured[0])
    others = [name for name in measured if name != speed] or measured
    return speed, next((name for name in others if "torque" in name), others[0])


def status(session: Session, pace: float) -> str:
    """What is played and how it goes, as HTML."""
    iteration = "" if session.iteration is None else f"iteration {session.iteration}"
    ended = f"; the last one ended by {session.ended_by}" if session.ended_by else ""
    lines = [
        f"{iteration}, {'paused' if session.is_paused else f'{pace:.2f} x real time'}",
        f"{session.episode_s:.2f} s of an episode{html.escape(ended)}",
    ]
    problem = f'<div style="color:{LESS}">{html.escape(session.problem)}</div>' if session.problem else ""
    return small("<br>".join(lines) + problem)


def bars(rewards: Mapping[str, float]) -> str:
    """Each reward term per second as a bar, to the right where it adds and to the left where it takes, as HTML."""
    largest = max((abs(value) for value in rewards.values()), default=0.0) or 1.0
    rows = [
        f"<div>{html.escape(name)}</div>{_bar(value / largest)}<div style='text-align:right'>{value:+.2g}</div>"
        for name, value in rewards.items()
    ]
    grid = "display:grid;grid-template-columns:auto 1fr auto;column-gap:0.6em;white-space:nowrap"
    return small(f'Reward per second<div style="{grid}">{"".join(rows)}</div>')


def _bar(share: float) -> str:
    """`share`: of the largest, -1 to 1."""
    side, color = ("left", MORE) if share >= 0 else ("right", LESS)
    bar = f"position:absolute;{side}:50%;width:{50 * abs(share):.1f}%;top:15%;height:70%;background:{color}"
    axis = "position:relative;background:linear-gradient(#999,#999) center/1px 100% no-repeat"
    return f'<div style="{axis}"><div style="{bar}"></div></div>'


def small(content: str) -> str:
    return f'<div style="font-size:0.8em;line-height:1.5;padding:0.2em 1em">{content}</div>'


def free_port(wanted: int) -> int:
    """`wanted`, or the next that nobody listens on. Raises a ConfigError."""
    for port in range(wanted, min(wanted + 100, 65536)):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                listener.bind((HOST, port))
                return port
    raise ConfigError(f"port={wanted}: no port from there on is free. Choose another.")
