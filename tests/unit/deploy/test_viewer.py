"""The viewer without simulator and browser: what is stepped, steered and exchanged, and what the page says of it."""

import queue
import shutil
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from ppo_lab.contracts import Measurement
from ppo_lab.deploy import stage
from ppo_lab.deploy.trained import Trained
from ppo_lab.deploy.viewer.loop import pace, run
from ppo_lab.deploy.viewer.page import bars, free_port, status, two_curves
from ppo_lab.deploy.viewer.session import Checkpoints, Session
from ppo_lab.envs.genesis.shapes import MAX_FACES, glb
from ppo_lab.errors import ConfigError
from ppo_lab.learning.checkpoint import load, save
from tests.paths import REPOSITORY
from tests.unit.envs.test_batched import CPU, N, TinyEnv, config


class SteeredEnv(TinyEnv):
    """A point that is told a velocity, and measures its distance. An episode has 10 steps of 0.1 s."""

    commands: Mapping[str, tuple[float, float]] = {"vel_x_m_s": (0.5, 0.5), "vel_y_m_s": (-1.0, 1.0)}
    told = torch.full((N, 2), 0.5)

    def get_commands(self) -> torch.Tensor:
        return self.told

    def hold_commands(self, values: Sequence[float] | None) -> None:
        super().hold_commands(values)
        self.told = torch.tensor(values or [0.5, 0.5]).expand(N, 2)

    def step(self, actions: torch.Tensor) -> Any:
        self.actions = actions
        return super().step(actions)

    def _end_episodes(self, ended: torch.Tensor) -> torch.Tensor:
        terminations = {"time_out": self.episode_length_buf > 10, "too_far": self._pos.norm(dim=1) > 2.0}
        self._show(terminations, lambda: {"distance_m": Measurement(self._pos.norm(dim=1), "mean")})
        return super()._end_episodes(ended)


class Constant:
    """A policy whose actions are all `value`."""

    def __init__(self, value: float, iteration: int) -> None:
        self.value, self.iteration = value, iteration

    def mean(self, observations: Any) -> torch.Tensor:
        return torch.full((N, 2), self.value)


class Policies:
    """`last` is damaged; `best` is the policy of `of_best`."""

    of_best = 1

    def names(self) -> list[str]:
        return ["best", "1", "0", "last"]

    def version(self, name: str) -> object:
        return self.of_best if name == "best" else 0

    def load(self, name: str) -> Any:
        if name == "last":
            raise ConfigError("model_2.pt is cut short.")
        iteration = self.of_best if name == "best" else int(name)
        return Constant(0.1 * iteration, iteration)


@pytest.fixture
def env() -> SteeredEnv:
    return SteeredEnv(config(), N, CPU, 1)


@pytest.fixture
def session(env: SteeredEnv) -> Session:
    return Session(env, Policies(), "best")


def test_a_session_has_taken_a_first_step(session: Session, env: SteeredEnv) -> None:
    assert (session.steps, session.playing, session.iteration) == (1, "best", 1)
    assert session.episode_s == pytest.approx(0.1)
    assert session.measurements == ["reward_per_s", "distance_m"]


def test_another_policy_acts_from_the_next_step_on_and_the_env_stays_as_it_is(
    session: Session, env: SteeredEnv
) -> None:
    before = env._pos.clone(), env.episode_length_buf.clone()
    session.play("0")
    assert torch.equal(env._pos, before[0])
    assert torch.equal(env.episode_length_buf, before[1])
    session.step()
    assert env.actions.unique().tolist() == [0.0]
    assert (session.playing, session.iteration, int(env.episode_length_buf[0])) == ("0", 0, 2)


def test_a_policy_that_cannot_be_had_leaves_the_present_one_and_says_why(session: Session, env: SteeredEnv) -> None:
    session.play("last")
    session.step()
    assert (session.playing, session.problem) == ("best", "model_2.pt is cut short.")
    assert env.actions[0, 0] == pytest.approx(0.1)
    session.play("0")
    assert session.problem == ""


def test_a_best_that_is_another_one_now_is_played_anew(session: Session, env: SteeredEnv) -> None:
    policies: Any = session._policies
    session.look_for_policies()
    assert session.iteration == 1
    policies.of_best = 7
    session.look_for_policies()
    session.step()
    assert session.iteration == 7
    assert env.actions[0, 0] == pytest.approx(0.7)


def test_a_reset_begins_an_episode_whose_first_step_is_taken_and_forgets_what_was_before(
    session: Session, env: SteeredEnv
) -> None:
    for _ in range(4):
        session.step()
    session.reset()
    assert env.episode_length_buf.tolist() == [1] * N
    assert session.ended_by == "reset"
    assert session.episode_s == pytest.approx(0.1)
    assert len(session.curve("distance_m")[0]) == 1


def test_an_episode_that_ends_says_by_what(session: Session, env: SteeredEnv) -> None:
    for _ in range(10):
        session.step()
    assert (session.ended_by, session.episode_s) == ("time_out", 0.0)
    env._pos = env._pos + 5.0
    session.step()
    assert session.ended_by == "too_far"


def test_commands_are_held_within_a_unit_beyond_the_range_of_training(session: Session, env: SteeredEnv) -> None:
    assert session.ranges == {"vel_x_m_s": (-0.5, 1.5), "vel_y_m_s": (-2.0, 2.0)}
    session.command({"vel_x_m_s": 9.0})
    assert session.commands == {"vel_x_m_s": 1.5, "vel_y_m_s": 0.5}
    session.change_command("vel_y_m_s", -0.25)
    session.command({"vel_x_m_s": float("nan")})
    assert session.commands == {"vel_x_m_s": 1.5, "vel_y_m_s": 0.25}
    assert session.is_held
    session.let_draw_commands()
    assert (session.is_held, env._held_commands) == (False, None)


def test_rewards_are_means_per_second_with_the_largest_first(session: Session, env: SteeredEnv) -> None:
    session._rewards.clear()
    session._rewards += [{"near": 0.02, "effort": -0.1}, {"near": 0.04, "effort": -0.2}]
    assert list(session.rewards()) == ["effort", "near"]
    assert session.rewards() == pytest.approx({"effort": -1.5, "near": 0.3})


def test_a_curve_ends_now_and_the_reward_is_the_sum_of_its_terms(session: Session, env: SteeredEnv) -> None:
    session.step()
    times, values = session.curve("distance_m")
    assert times == pytest.approx([-0.1, 0.0])
    assert values[-1] == pytest.approx(float(env._pos[0].norm()))
    assert session.curve("reward_per_s")[1][-1] == pytest.approx(sum(session._rewards[-1].values()) / 0.1)


class Stop(Exception):
    pass


def stop() -> None:
    raise Stop


class Page:
    """Counts what is drawn, and asks for what it was given."""

    def __init__(self, *asks: Callable[[], Any]) -> None:
        self.requests: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        for ask in asks:
            self.requests.put(ask)
        self.draws = 0

    def draw(self) -> None:
        self.draws += 1

    def tell(self, pace: float) -> None:
        self.pace = pace


def test_a_paused_session_steps_once_for_each_time_it_is_asked(session: Session) -> None:
    page: Any = Page(session.single_step, session.single_step, stop)
    session.toggle_pause()
    with pytest.raises(Stop):
        run(session, page)
    assert session.steps == 1 + 2
    assert session.is_paused


def test_a_session_steps_by_itself_as_time_passes(session: Session) -> None:
    session.speed = 100.0

    class Watcher(Page):
        def draw(self) -> None:
            super().draw()
            if session.steps >= 5:
                stop()

    page: Any = Watcher()
    with pytest.raises(Stop):
        run(session, page)
    assert page.draws >= 2


def test_the_pace_is_simulated_time_over_time() -> None:
    assert pace(deque([1.0, 1.1, 1.2, 1.3]), 1.4, dt=0.1) == pytest.approx(0.75)
    assert pace(deque(), 1.2, dt=0.1) == 0.0


def test_checkpoints_appear_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    shutil.copytree(REPOSITORY / "tests/fixtures/runs_before_generators/hover", folder)
    found = Checkpoints(Trained.read(folder), CPU)
    first = folder / "checkpoints/model_2.pt"
    assert found.names() == ["2"]
    assert (found.name_of(first), found.version("3")) == ("2", None)
    save(folder / "checkpoints/best.pt", load(first) | {"iter": 9})
    (folder / "checkpoints/model_10.pt").write_bytes(b"half")
    assert found.names() == ["best", "10", "2"]
    policy: Any = found.load("best")
    assert policy.iteration == 9
    with pytest.raises(ConfigError, match=r"model_10\.pt is cut short"):
        found.load("10")
    before = found.version("best")
    assert found.version("best") == before
    save(folder / "checkpoints/best.pt", load(first))
    assert found.version("best") != before


def test_an_env_that_cannot_be_drawn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "make_env", lambda *_: SteeredEnv(config(), N, CPU, 1))
    with pytest.raises(ConfigError, match=r"^the env tiny cannot be viewed: it has no method shapes\. An env on the"):
        stage.visible_env(config(), CPU, 1)


def test_bars_are_signed_scaled_by_the_largest_and_escape_names() -> None:
    page = bars({"<b>far": -2.0, "near": 1.0})
    assert "<b>" not in page
    assert "&lt;b&gt;far" in page
    assert "right:50%;width:50.0%" in page
    assert "left:50%;width:25.0%" in page
    assert page.index("-2") < page.index("+1")
    assert "width:0.0%" in bars({"none": 0.0})


def test_the_status_escapes_what_it_quotes(session: Session) -> None:
    session.problem, session.is_paused = "<script>", True
    assert "&lt;script&gt;" in status(session, 0.0)
    assert "iteration 1, paused" in status(session, 0.0)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["reward_per_s", "distance_m", "speed_m_s", "peak_torque_n_m"], ("speed_m_s", "peak_torque_n_m")),
        (["reward_per_s", "distance_m", "speed_m_s"], ("speed_m_s", "distance_m")),
        (["reward_per_s", "distance_m"], ("distance_m", "reward_per_s")),
        (["reward_per_s"], ("reward_per_s", "reward_per_s")),
    ],
)
def test_the_first_curves_are_a_speed_and_a_torque_where_there_are_such(
    names: list[str], expected: tuple[str, str]
) -> None:
    assert two_curves(names) == expected


def test_a_port_that_is_taken_is_skipped() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert taken < free_port(taken) < taken + 100


class Geom:
    init_pos, init_quat = np.array([1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])

    def __init__(self, mesh: trimesh.Trimesh) -> None:
        self.trimesh = mesh


class Link:
    def __init__(self, *vgeoms: Geom, geoms: Sequence[Geom] = ()) -> None:
        self.vgeoms, self.geoms = vgeoms, geoms


def test_a_link_is_drawn_in_its_own_frame_and_colour_with_fewer_faces() -> None:
    ball = trimesh.creation.icosphere(subdivisions=5)  # 20,480 faces
    ball.visual.vertex_colors = [[255, 128, 0, 200]] * len(ball.vertices)
    drawn: Any
    (drawn,) = trimesh.load_scene(trimesh.util.wrap_as_stream(glb(Link(Geom(ball)))), file_type="glb").dump()
    assert len(drawn.faces) <= MAX_FACES
    assert drawn.bounds.tolist() == [
        pytest.approx([0.0, -1.0, -1.0], abs=0.02),
        pytest.approx([2.0, 1.0, 1.0], abs=0.02),
    ]
    assert drawn.visual.material.main_color.tolist() == [255, 56, 0, 200]
    box = Geom(trimesh.creation.box())
    assert glb(Link(geoms=[box])) == glb(Link(box)), "what collides stands in"
    assert glb(Link()) == b""
