"""Each term of randomization changes what it says: the simulator's numbers for each env, and how the robot moves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_lab.config import ExperimentConfig
from ppo_lab.envs import make_env, randomization

Experiment = Callable[..., ExperimentConfig]
STANDS = 50
"""Steps until a robot that is told to stand does."""


def build(experiment: Experiment, device: torch.device, num_envs: int, **terms: dict[str, Any]) -> Any:
    words = [f"+env.randomization.{term}.{key}={value}" for term, cfg in terms.items() for key, value in cfg.items()]
    cfg = experiment("env=go2", "env.termination_if_roll_greater_than=180", *(word.replace(" ", "") for word in words))
    return make_env(cfg.env, num_envs, device, seed=1)


def stand(env: Any, steps: int = STANDS, action: float = 0.0) -> None:
    actions = torch.full((env.num_envs, 12), action)
    for _ in range(steps):
        env.step(actions)


def fixed(value: float, when: str, operation: str, **more: Any) -> dict[str, Any]:
    return {"when": when, "operation": operation, "range": [value, value], **more}


def slip(env: Any) -> Tensor:
    """How far the feet slide, in sum, of a robot that stands and is pushed."""
    stand(env)
    env._robot.push(torch.tensor([[1.0, 0.0]]).expand(env.num_envs, -1))
    slid = torch.zeros(env.num_envs)
    for _ in range(15):
        stand(env, 1)
        slid = slid + env._robot.foot_slip() * env.cfg.dt
    return slid


def effort(env: Any) -> Tensor:
    stand(env)
    return env._robot.torque().abs().sum(dim=1)


def nose_down(env: Any) -> Tensor:
    stand(env)
    return env._projected_gravity[:, 0]


def height(env: Any) -> Tensor:
    stand(env)
    return env._base_height


def joint_angle(env: Any) -> Tensor:
    stand(env)
    return env._dof_pos[:, 1]


def started(env: Any) -> Tensor:
    """The angle of a joint two steps after it was told to move."""
    stand(env)
    before = env._dof_pos[:, 2].clone()
    stand(env, 3, action=2.0)
    return env._dof_pos[:, 2] - before


def largest_torque(env: Any) -> Tensor:
    stand(env)
    stand(env, 3, action=20.0)
    return env._robot.torque().abs().amax(dim=1)


def speed(env: Any) -> Tensor:
    fastest = torch.zeros(env.num_envs)
    stand(env, 30)
    for _ in range(20):
        stand(env, 1)
        fastest = fastest.maximum(env._base_lin_vel[:, 1].abs())
    return fastest


def first_angle(env: Any) -> Tensor:
    return env._dof_pos[:, 0]


def told_speed(env: Any) -> Tensor:
    return env.get_commands()[:, 0]


def seen_angle(env: Any) -> Tensor:
    stand(env, 1)
    return env.get_observations()["policy"][:, 9] + env._default_dof_pos[0] - env._dof_pos[:, 0]


EFFECTS: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Any], Tensor], float]] = {
    "friction": (fixed(1.0, "build", "set"), fixed(0.3, "reset", "set"), slip, 0.05),
    "base_mass": (fixed(0.0, "build", "add"), fixed(4.0, "build", "add"), effort, 5.0),
    "center_of_mass": (fixed(0.0, "build", "add"), fixed(0.1, "build", "add"), nose_down, 0.01),
    "gains": (fixed(2.0, "build", "scale"), fixed(1.0, "reset", "scale"), height, -0.01),
    "motor_strength": (fixed(1.0, "build", "scale"), fixed(0.5, "reset", "scale"), largest_torque, -5.0),
    "motor_offset": (fixed(0.0, "build", "add"), fixed(0.1, "reset", "add"), joint_angle, 0.03),
    "joint_friction": (fixed(0.0, "build", "set"), fixed(3.0, "reset", "set"), started, -0.02),
    "armature": (fixed(0.0, "build", "add"), fixed(0.3, "build", "add"), started, -0.02),
    "action_delay": (fixed(0, "build", "add"), fixed(2, "reset", "add"), started, -0.02),
    "initial_pose": (fixed(0.0, "reset", "add"), fixed(0.1, "reset", "add"), first_angle, 0.09),
    "commands": (
        fixed(0.0, "interval", "set", low="{lin_vel_x_m_s:0.2}", high="{lin_vel_x_m_s:0.6}"),
        fixed(1.0, "interval", "set", low="{lin_vel_x_m_s:0.2}", high="{lin_vel_x_m_s:0.6}"),
        told_speed,
        0.39,
    ),
    "push": (
        fixed(0.0, "interval", "add", interval_s=[0.3, 0.5]),
        fixed(1.0, "interval", "add", interval_s=[0.3, 0.5]),
        speed,
        0.3,
    ),
    "observation_noise": (
        fixed(0.0, "step", "add", amplitudes="{dof_pos:0.2}"),
        fixed(1.0, "step", "add", amplitudes="{dof_pos:0.2}"),
        seen_angle,
        0.15,
    ),
}
"""Term -> its settings, others, a quantity (N,), and by how much at least the others change it."""


@pytest.mark.parametrize("term", randomization.names())
@torch.inference_mode()
def test_a_term_changes_how_the_robot_moves_or_what_it_sees(
    term: str, simulator: torch.device, experiment: Experiment
) -> None:
    without, with_it, measure, least = EFFECTS[term]
    before = measure(build(experiment, simulator, 4, **{term: without}))
    after = measure(build(experiment, simulator, 4, **{term: with_it}))
    change = after - before
    assert (change * (1 if least > 0 else -1) >= abs(least)).all(), (before, after)


@pytest.mark.parametrize("num_envs", [1, 64, 127, 128, 129])
@torch.inference_mode()
def test_the_simulator_has_the_numbers_of_each_env(
    num_envs: int, simulator: torch.device, experiment: Experiment
) -> None:
    env: Any = make_env(experiment("env=go2", "randomization=full").env, num_envs, simulator, seed=1)
    robot, drawn = env._robot, {name: term.values for name, term in env._terms.items()}
    solver, joints = robot.entity.scene.rigid_solver, robot._motor_dofs
    friction = solver.get_geoms_friction_ratio() * solver.get_geoms_friction()
    torch.testing.assert_close(friction, drawn["friction"].expand_as(friction))
    mass = robot.entity.get_links_mass([robot._base])
    torch.testing.assert_close(mass, robot.base_mass + drawn["base_mass"])
    center = robot.entity.get_links_COM([robot._base])[:, 0]
    torch.testing.assert_close(center, robot.base_center + drawn["center_of_mass"])
    gains = torch.cat([robot.entity.get_dofs_kp(joints) / 20.0, robot.entity.get_dofs_kv(joints) / 0.5], dim=1)
    torch.testing.assert_close(gains, drawn["gains"])
    limits = robot.entity.get_dofs_force_range(joints)[1]
    torch.testing.assert_close(limits, robot.nominal_torque_limits * drawn["motor_strength"])
    torch.testing.assert_close(robot.entity.get_dofs_frictionloss(joints), drawn["joint_friction"])
    torch.testing.assert_close(robot.entity.get_dofs_armature(joints), robot.nominal_armature + drawn["armature"])
    for name, term in env._terms.items():
        low, high = term.cfg.range
        assert ((term.values >= low) & (term.values <= high)).all(), name
        assert num_envs == 1 or not term.values.numel() or len(term.values.unique(dim=0)) > 1, name


@torch.inference_mode()
def test_what_is_drawn_at_reset_is_drawn_anew_for_the_envs_that_are_reset_alone(
    simulator: torch.device, experiment: Experiment
) -> None:
    env: Any = make_env(experiment("env=go2", "randomization=full").env, 3, simulator, seed=1)
    before = {name: term.values.clone() for name, term in env._terms.items()}
    env.episode_length_buf[1] = env.spec.max_episode_length
    assert env.step(torch.zeros(3, 12)).dones.tolist() == [False, True, False]
    for name, term in env._terms.items():
        is_same = (term.values == before[name]).all(dim=1).tolist()
        if term.cfg.when == "reset" and name != "action_delay":
            assert is_same == [True, False, True], name
        elif term.cfg.when == "build":
            assert is_same == [True, True, True], name


@torch.inference_mode()
def test_a_term_for_a_share_of_the_envs_leaves_the_others_as_they_are_without_it(
    simulator: torch.device, experiment: Experiment
) -> None:
    backwards = "{when:interval,operation:set,low:{lin_vel_x_m_s:-1},high:{lin_vel_x_m_s:-0.5}}"
    commands = f"+env.randomization.commands={backwards}"
    without = "~env.randomization.armature", "~env.randomization.joint_friction"  # what they set has no neutral value
    terms = experiment("randomization=full", *without, commands).env.randomization
    shares = [f"+env.randomization.{term}.share=0.5" for term in terms]
    mixed: Any = make_env(experiment("randomization=full", *without, commands, *shares).env, 8, simulator, seed=1)
    plain: Any = make_env(experiment().env, 8, simulator, seed=1)
    differs = torch.zeros(8, dtype=torch.bool)
    for _ in range(200):  # a push comes after 3 to 6 s
        seen, of_plain = (env.step(torch.zeros(8, 12)).observations["policy"] for env in (mixed, plain))
        differs |= ((seen - of_plain).abs() > 1e-4).any(dim=1)  # setting the same mass again rounds it
    assert differs.tolist() == [True] * 4 + [False] * 4
    assert mixed.get_commands()[:, 0].tolist() == pytest.approx([-0.75] * 4 + [0.5] * 4, abs=0.25)
    assert mixed.commands["lin_vel_x_m_s"] == (-1.0, 0.5)
