"""What the parts of ppo-lab promise each other. Typing only: nothing of ours and no library is loaded.

N = num_envs, T = num_steps_per_env, A = number of actions, K = number of reward terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from tensordict import TensorDict
    from torch import Tensor

State = dict[str, Any]
"""Tensors on the CPU, numbers, strings and None alone, in dicts, lists and tuples: what `weights_only=True` reads."""


class ObservationTerm(NamedTuple):
    """How a term of the group "policy" is made of what a robot measures: clip((raw - offset) * scale), in float32."""

    name: str
    source: str
    """The quantity: a key of `WatchedEnv.sensors`; or "actions", the policy's own, clipped."""
    unit: str
    """Of the quantity; "1" where it has none."""
    meaning: str
    """In which frame, directions and order."""
    scale: tuple[float, ...]
    """Of each number of the term."""
    offset: tuple[float, ...] = ()
    """Of each number, in the quantity's unit; empty: 0."""
    clip: float | None = None
    """The scaled numbers are clipped to +- this."""
    actions_ago: int = 0
    """Of the policy's own actions: 1 is the newest that was given, 2 the one before; at first they are 0.
    0: the term is measured."""


class Deployment(NamedTuple):
    """What a policy needs on a robot: how observations are made, how actions become targets, in which conventions."""

    joints: tuple[str, ...]
    """The actuated joints, or rotors, in the order of the actions."""
    default_pose: tuple[float, ...]
    """Targets for an action of 0: joint positions, or speeds of rotors, in `unit`."""
    kp: float | None
    """Of the joints' position control, N m / rad."""
    kd: float | None
    """N m s / rad."""
    action_scale: float
    """A target is default_pose + action_scale * the clipped action."""
    clip_actions: float
    latency_steps: int
    """Control steps until an action takes effect."""
    quaternion: str = "w x y z"
    unit: str = "rad"
    """Of the targets: rad | rpm."""
    observations: tuple[ObservationTerm, ...] = ()
    """The terms of the group "policy", in order. Empty where nobody has described them: no export then."""


class EnvSpec(NamedTuple):
    """An env's observations, actions and reward terms. Known from its settings alone, without torch."""

    observations: Mapping[str, Mapping[str, int]]
    """Group -> term -> width, in order. The actor sees the group "policy"; the critic sees "critic" where there is one,
    or else "policy"."""
    actions: tuple[str, ...]
    rewards: tuple[str, ...]
    """Names of the reward terms."""
    dt: float
    """Control step, s."""
    max_episode_length: int
    """Steps in an episode that is not cut short."""
    deployment: Deployment | None = None
    """None where there is no robot."""

    def width(self, group: str = "policy") -> int:
        """Numbers in one observation of `group`."""
        return sum(self.observations[group].values())

    @property
    def critic_group(self) -> str:
        """The group that the critic sees."""
        return "critic" if "critic" in self.observations else "policy"


class StepResult(NamedTuple):
    """What a step of all envs gives. Every tensor is a fresh one, never written again: the learner keeps references."""

    observations: TensorDict
    """Group -> (N, width) float32; of the new episode where one began."""
    rewards: Tensor
    """(N,) float32."""
    dones: Tensor
    """(N,) bool. An episode ended in this step, and the env was reset."""
    time_outs: Tensor
    """(N,) bool. It ended by its length alone."""
    episode_sums: Tensor
    """(K,) float32. Each reward term, summed over the episodes that ended in this step, per second of a whole one."""


class Stateful(Protocol):
    """Something whose coming steps depend on what it holds."""

    def state(self) -> State:
        """All that the coming steps depend on."""
        ...

    def restore(self, state: State) -> None:
        """Puts back what `state` gave, of an object built alike: the coming steps are identical.

        Raises a ValueError that names what does not fit, before anything is changed.
        """
        ...


class Env(Stateful, Protocol):
    """N envs of one kind, stepped together. It draws from a random generator of its own, which is part of its state."""

    spec: EnvSpec
    num_envs: int
    device: torch.device
    episode_length_buf: Tensor
    """(N,) int32. Steps since each env was reset. The learner may set it before the first step."""

    def get_observations(self) -> TensorDict:
        """The newest observations, group -> (N, width) float32. Changes nothing."""
        ...

    def step(self, actions: Tensor) -> StepResult:
        """Steps every env by `spec.dt`, and resets at once those whose episode ended. actions: (N, A) float32."""
        ...

    def check(self) -> dict[str, float]:
        """Asked once an iteration: counts worth logging, none where all went well. They add up over scenes and ranks.

        Raises a SimulatorError.
        """
        ...


class Measurement(NamedTuple):
    """A quantity of the task in one step, and how an episode sums it up."""

    values: Tensor
    """(N,) float32 or bool."""
    over_episode: Literal["mean", "sum", "max", "first_s"]
    """first_s: seconds until it is not 0 for the first time."""


class StepDetails(NamedTuple):
    """What a step came to, before the envs whose episode ended were reset."""

    rewards: Mapping[str, Tensor]
    """Term -> (N,) float32, weighted: their sum is the reward."""
    terminations: Mapping[str, Tensor]
    """Name -> (N,) bool; "time_out" is among them. An episode may end by several in one step."""
    measurements: Mapping[str, Measurement]
    """With the unit in the name: speed_m_s."""
    targets: Tensor | None = None
    """(N, A): what the actuators were told in this step, in `Deployment.unit`. None where the env does not say."""


class Looks(NamedTuple):
    """What an env that is to be seen has, and one that trains has not: the robot's meshes, and a camera."""

    width_px: int = 0
    """Of the camera's pictures; 0: no camera, and no need for OpenGL."""
    height_px: int = 0
    field_of_view_deg: float = 40.0
    """From the lower to the upper edge of a picture."""


class WatchedEnv(Env, Protocol):
    """An env that evaluation, films and the viewer can look into. Training never does, and pays nothing for it."""

    commands: Mapping[str, tuple[float, float]]
    """What the policy is told to do, with its unit: name -> the range that is drawn from. Empty where there is none."""

    def watch(self, on_step: Callable[[StepDetails], None] | None) -> None:
        """From now on calls `on_step` in every step; None: no longer."""
        ...

    def sensors(self) -> Mapping[str, Tensor]:
        """What a robot would measure or be told, unscaled, at the time of the newest observations.

        Source of an `ObservationTerm` -> (N, D) float32. Empty where the env does not say. Changes nothing.
        """
        ...

    def get_commands(self) -> Tensor:
        """(N, C) float32, in the order of `commands`."""
        ...

    def hold_commands(self, values: Sequence[float] | None) -> None:
        """From now on every env has these C commands, instead of those that are drawn; None: they are drawn again."""
        ...


class FilmedEnv(WatchedEnv, Protocol):
    """An env whose looks have a camera. Where it was reset or restored, robot and camera may show it a step later."""

    def robot_box(self) -> Tensor:
        """(N, 2, 3), m: the lowest and the highest corner of the box around the robot."""
        ...

    def get_targets(self) -> Tensor:
        """(N, P, 3), m: the places that the robot is to reach, which pictures mark; P is 0 where there are none."""
        ...

    def picture(self, position: Sequence[float], look_at: Sequence[float]) -> np.ndarray:
        """(height, width, 3) uint8: env 0 as it is now, from `position` towards `look_at`, both in m; up is up."""
        ...


class VisibleEnv(WatchedEnv, Protocol):
    """A watched env whose first env can be drawn and pushed. B bodies; the first is the robot's base."""

    def shapes(self) -> list[bytes]:
        """What each body looks like: a binary glTF in the body's frame, z up; empty where there is nothing to see."""
        ...

    def poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the bodies are in the world: positions (B, 3), m, and quaternions (B, 4), w x y z."""
        ...

    def push(self, velocity: Sequence[float]) -> None:
        """Adds `velocity` (3), m/s in the world, to that of the robot's base."""
        ...


class Policy(Protocol):
    """Observations in, actions out."""

    spec: EnvSpec

    def act(self, observations: TensorDict) -> Tensor:
        """Actions (N, A), sampled as in training."""
        ...

    def mean(self, observations: TensorDict) -> Tensor:
        """Actions (N, A), the same for the same observations."""
        ...


class Update(Protocol):
    """One update of actor and critic from a filled rollout storage."""

    def __call__(self, last_observations: TensorDict) -> dict[str, float]:
        """Computes returns, takes every optimizer step of an iteration, empties the storage; gives the mean losses."""
        ...


class Ranks(Protocol):
    """The processes that train one run together. Every rank makes the same calls in the same order.

    Each call raises a RankLostError where another rank is gone.
    """

    rank: int
    world_size: int

    def reduce_mean(self, values: Tensor) -> None:
        """Replaces `values` by its mean over all ranks: the same bits on each."""
        ...

    def broadcast(self, values: Tensor) -> None:
        """Replaces `values` by what rank 0 has."""
        ...

    def exchange(self, value: State) -> list[State]:
        """What every rank gave, in the order of their ranks."""
        ...

    def gather(self, value: State) -> list[State]:
        """The same on rank 0; nothing on the others. For what is large."""
        ...

    def scatter(self, values: Sequence[State]) -> State:
        """The one of `values`, which rank 0 gives in the order of the ranks, that is this rank's."""
        ...


class MemoryPhases(Protocol):
    """Measures the memory of an iteration, phase by phase."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Around "rollout" and "update"."""
        ...

    def scalars(self) -> dict[str, float]:
        """Closes the iteration: "Memory/..._mib" -> MiB."""
        ...


class CheckpointStore(Protocol):
    """Keeps what a run can go on from."""

    def is_due(self, iteration: int) -> bool:
        """Whether to save after `iteration`, counted from 0."""
        ...

    def maybe_save(
        self,
        iteration: int,
        model: Callable[[], State],
        state: State | None,
        reward: float | None,
        last: bool = False,
    ) -> None:
        """Called at the end of every iteration, counted from 0; saves where there is a `state`.

        Args:
            iteration: the one that is complete.
            model: gives the learner; called only when it is needed.
            state: what else the coming iterations depend on; given where a checkpoint is due, and for the last.
            reward: `Train/mean_reward`; None before an episode has ended.
            last: nothing comes after; returns when all is written.

        Raises:
            CheckpointError: `last`, and it could not be written. An earlier one that could not is a warning.
        """
        ...


Report = Callable[[int, dict[str, float]], None]
"""Takes an iteration's number, counted from 0, and its scalars."""


class RunRecord(Protocol):
    """What a run folder says, as far as it got."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Nested; empty where the run never started."""
        ...

    @property
    def manifest(self) -> Mapping[str, Any]: ...
    @property
    def summary(self) -> Mapping[str, Any]: ...
    @property
    def estimate(self) -> Mapping[str, Any]: ...
    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row an iteration, up to the first line that cannot be read."""
        ...

    @property
    def damages(self) -> tuple[str, ...]:
        """What could not be read, and why."""
        ...
