"""A term of randomization: what each of its kind says of itself, and does. Loads neither torch nor the simulator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from ppo_lab.config import as_text, setting
from ppo_lab.states import gather, put_back

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ppo_lab.config import EnvConfig
    from ppo_lab.contracts import State
    from ppo_lab.envs.genesis.robot import JointedRobot

WHEN = {
    "build": "once, when the env is built",
    "reset": "at the start of each episode",
    "interval": "time and again within an episode",
    "step": "in every step",
}
OPERATIONS = {"set": "the value is drawn", "add": "what is drawn is added", "scale": "what is drawn is a factor"}


@dataclass
class TermConfig:
    """Values are drawn evenly from `range`, for each env apart."""

    when: str = setting(choices=tuple(WHEN))
    operation: str = setting(choices=tuple(OPERATIONS))
    range: list[float] = setting(items=2)
    share: float = setting(default_factory=lambda: 1.0, at_least=0, at_most=1)
    """Of the envs of a scene: the term is for the first ones, and changes nothing for the others."""


Settings = TypeVar("Settings", bound=TermConfig)


class Term(Generic[Settings]):
    """N envs, each with numbers of its own. A subclass says what they are, and overrides what they change.

    All that is drawn comes from the env's generator, is a tensor attribute, and so part of the env's state.
    """

    unit: ClassVar[str]
    """Of `range`; of a factor there is none."""
    when: ClassVar[tuple[str, ...]]
    """The times at which it can be drawn."""
    operations: ClassVar[tuple[str, ...]]
    lowest: ClassVar[float | None] = None
    """The lowest value that `range` may have."""
    has_neutral: ClassVar[bool] = True
    """Whether `neutral` holds of what is set as well."""
    simulator_options: ClassVar[dict[str, bool]] = {}
    """What the simulator must keep for each env: Genesis' RigidOptions."""

    def __init__(self, cfg: Settings, env: EnvConfig, robot: JointedRobot, generator: torch.Generator) -> None:
        """`robot`: of a scene that is built. Draws for all envs."""
        self.cfg = cfg
        self.robot = robot
        self._generator_of_env = (generator,)  # the env's: no state of the term
        self.values = self.new_values(robot.num_envs, self.width(robot))  # (N, W)
        self.apply()

    def width(self, robot: JointedRobot) -> int:
        """Numbers of each env, W."""
        return 1

    def begin(self, chosen: Tensor) -> None:
        """Draws new values for the envs in `chosen` (N,) bool, and applies them."""
        self.values = self.new_values(*self.values.shape).where(chosen.unsqueeze(1), self.values)
        self.apply()

    def new_values(self, num_envs: int, width: int) -> Tensor:
        """Drawn (N, W), but `neutral` in the envs that the term is not for."""
        values = self.draw(num_envs, width)
        values[self.num_changed :] = self.neutral
        return values

    @property
    def num_changed(self) -> int:
        """So many envs, the first ones, are those that the term is for."""
        return round(self.cfg.share * self.robot.num_envs)

    @property
    def neutral(self) -> float:
        """The value that changes nothing. A term that sets one, and can say which that is, overrides it."""
        return 1.0 if self.cfg.operation == "scale" else 0.0

    def draw(self, *shape: int) -> Tensor:
        """Numbers of the range."""
        low, high = self.cfg.range
        return low + (high - low) * self.uniform(*shape)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from 0 to 1, of the env's random stream."""
        import torch

        return torch.rand(shape, device=self.robot.device, generator=self._generator_of_env[0])

    def state(self) -> State:
        return gather(self)

    def restore(self, state: State) -> None:
        """The simulator's part is in the scene's state."""
        put_back(self, state, self.robot.device)

    def apply(self) -> None:
        """Tells the simulator, where it is to know."""

    def on_step(self) -> None:
        """Called in every step, before the simulator's."""

    def on_reset(self, ended: Tensor) -> None:
        """Called in every step, after the envs in `ended` (N,) bool were put back to the start."""
        if self.cfg.when == "reset":
            self.begin(ended)

    def on_actions(self, actions: Tensor) -> Tensor:
        """What the robot is told of the policy's actions (N, J)."""
        return actions

    def on_targets(self, targets: Tensor) -> Tensor:
        """What the joints' control is told of the targets (N, J), rad."""
        return targets

    def on_start(self, pose: Tensor) -> Tensor:
        """Where the joints begin an episode, instead of in `pose` (N, J), rad."""
        return pose

    def on_commands(self, commands: Tensor) -> Tensor:
        """What the policy is told to do instead of the commands (N, C) that the env has drawn."""
        return commands

    def on_observations(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the policy sees of its terms (N, D)."""
        return terms

    @classmethod
    def on_ranges(cls, cfg: Settings, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """What `on_commands` makes of the commands' ranges."""
        return ranges

    @classmethod
    def problems(cls, cfg: Settings, env: EnvConfig) -> Iterator[str]:
        """Why `cfg`, whose values are of the right types, cannot work: each begins with the name of the setting."""
        low, high = cfg.range
        yield from unordered("range", cfg.range)
        if cls.lowest is not None and low < cls.lowest:
            yield f"range=[{low},{high}] is out of range. Allowed: from {cls.lowest} on, in {cls.unit}."
        elif cfg.operation == "scale" and low <= 0:
            yield f"range=[{low},{high}] has factors of 0 or less. Allowed: above 0."
        if cfg.when not in cls.when:
            yield f"when={as_text(cfg.when)} is not possible. Allowed: {', '.join(cls.when)}."
        if cfg.operation not in cls.operations:
            yield f"operation={as_text(cfg.operation)} is not possible. Allowed: {', '.join(cls.operations)}."
        if cfg.share < 1 and cfg.operation == "set" and not cls.has_neutral:
            yield f"share={cfg.share} needs operation=add or scale: what is set has no value for the other envs."


class JointTerm(Term[Settings]):
    """A number for each joint of each env, which are drawn apart."""

    def width(self, robot: JointedRobot) -> int:
        return robot.num_joints


def unordered(name: str, values: Sequence[float]) -> Iterator[str]:
    """Says so where the range [low, high] that `name` sets is upside down."""
    low, high = values
    if low > high:
        yield f"{name}=[{low},{high}] has low above high. Try [{high},{low}]."


def changed(nominal: Tensor, operation: str, drawn: Tensor) -> Tensor:
    """What becomes of the nominal value by one of the `OPERATIONS`."""
    match operation:
        case "add":
            return nominal + drawn
        case "scale":
            return nominal * drawn
    return drawn.expand_as(nominal + drawn)
