"""What every env on Genesis shares: starting the simulator, its state, episode books, random draws, frames."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any

import genesis as gs
import torch
from genesis.utils import array_class
from genesis.utils.array_class import DataItem, DataKind, ErrorCode, ScalarItem
from genesis.utils.geom import inv_quat, quat_to_xyz, transform_by_quat, transform_quat_by_quat
from genesis.utils.misc import qd_to_torch
from tensordict import TensorDict
from torch import Tensor

from ppo_lab.config import EnvConfig
from ppo_lab.errors import SimulatorError
from ppo_lab.states import check_fits

log = logging.getLogger(__name__)

TOO_MANY_CONTACTS = (
    ErrorCode.OVERFLOW_COLLISION_PAIRS | ErrorCode.OVERFLOW_CANDIDATE_CONTACTS | ErrorCode.OVERFLOW_CONTACTS
)
"""What Genesis flags in an env when it leaves contacts out for want of room."""
LOST = ErrorCode.INVALID_CONTACT_NAN | ErrorCode.INVALID_FORCE_NAN | ErrorCode.INVALID_ACC_NAN
"""What Genesis flags when an env's state is no longer finite."""
CARRIED_OVER = re.compile(
    r"\.(_is_forward_(pos|vel)_updated|dyn_state\.geoms\.(pos|quat)|dyn_state\.dofs\.cdofd?_(ang|vel)|"
    r"dyn_state\.links\.(pos|quat|i_pos|i_quat|cd_ang|cd_vel|cinr_\w+|cfrc_coupling_\w+))$"
)
"""What Genesis derives in one step and reads in the next, beside what it calls STATE and INFO.

Recomputed instead, it would differ in the last bits. All else that is derived is written before it is read, which
tests/test_state.py proves for every env by filling it with NaN.
"""


def start_simulator(device: torch.device, seed: int, performance_mode: bool, deterministic: bool = False) -> None:
    """Starts Genesis on `device`, once in a process. Seeds torch, numpy and python along with the simulator.

    `deterministic` is Genesis' switch, too. On a GPU it pins one of two constraint solvers that differ in the last
    bits, where Genesis would take the one that is faster at the time; on a CPU there is one. Left to Genesis (None), it
    is on outside performance mode.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    gs.init(
        backend=gs.cuda if on_gpu else gs.cpu,
        seed=seed,
        performance_mode=performance_mode,
        use_deterministic_algorithms=deterministic if on_gpu else deterministic or None,
        logging_level="error",
    )


class BatchedEnv:
    """The buffers and books of N envs. A subclass builds its scene, then defines `step`.

    A `step` is written out in the order that its MDP prescribes. What it calls here: `_pay` for the rewards,
    `_end_episodes` for the books and counters of the envs that are reset, `_observe`, and `_extras`; and `_simulate`
    where there is a scene.

    What changes from step to step is a tensor and an attribute, or it would be lost on resuming.
    """

    _scene: Any = None  # a gs.Scene, where there is one
    _said_lost = False
    _has_paid = False

    def __init__(self, cfg: EnvConfig, num_envs: int, device: torch.device, reward_scales: Any) -> None:
        """`reward_scales`: a dataclass of weights per second, one field per reward term."""
        self.cfg = cfg
        self.num_envs = num_envs
        self.num_actions = cfg.num_actions
        self.max_episode_length = cfg.max_episode_length
        self.device = device
        weights = dataclasses.asdict(reward_scales)
        self.reward_names = tuple(weights)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.int32, device=device)
        self._weights = self._tensor(list(weights.values())).unsqueeze(1) * cfg.dt  # (K, 1)
        self._reward_sums = torch.zeros(len(weights), num_envs, device=device)  # (K, N), of the episode so far
        self._simulator_errors = torch.zeros(2, dtype=torch.int64, device=device)  # too many contacts, lost

    def check(self) -> dict[str, float]:
        """Genesis forgets an env's error when the env is reset, so that a step that ends such episodes hides it."""
        too_many_contacts, lost = self._simulator_errors.tolist()
        self._simulator_errors.zero_()
        if too_many_contacts:
            raise SimulatorError(
                f"the simulator met more contacts than it has room for, in {too_many_contacts} steps of single envs "
                f"in one iteration; {self._mend(TOO_MANY_CONTACTS)}"
            )
        if not lost:
            return {}
        if not self._said_lost:
            self._said_lost = True
            log.warning("the simulator lost an env %d times in one iteration; %s", lost, self._mend(LOST))
        return {"Simulator/lost_envs": lost}

    def state(self) -> dict[str, Any]:
        buffers = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {"buffers": buffers, "simulator": simulator_state(self._scene) if self._scene else {}}

    def restore(self, state: dict[str, Any]) -> None:
        own = self.state()
        check_fits(type(self).__name__, state["buffers"], own["buffers"])
        check_fits("the simulator", state["simulator"], own["simulator"])
        for name, value in state["buffers"].items():
            setattr(self, name, value.to(self.device))
        if self._scene:
            restore_simulator(self._scene, state["simulator"])

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": self._obs}, batch_size=[self.num_envs], device=self.device)

    def _observe(self, *parts: Tensor) -> None:
        """Sets the observations to a fresh tensor, the parts (N, D_i) side by side."""
        self._obs = torch.cat(parts, dim=-1)

    def _pay(self, terms: dict[str, Tensor]) -> Tensor:
        """The step's rewards (N,), from every term (N,); enters them in the episode's books.

        Raises a ValueError in the first step where terms and weights are not of the same names.
        """
        if not self._has_paid:
            self._check_terms(terms)
            self._has_paid = True
        weighted = torch.stack([terms[name] for name in self.reward_names]) * self._weights
        self._reward_sums += weighted
        return weighted.sum(dim=0)

    def _check_terms(self, terms: dict[str, Tensor]) -> None:
        unweighted = [name for name in terms if name not in self.reward_names]
        missing = [name for name in self.reward_names if name not in terms]
        misshapen = [f"{name} {tuple(term.shape)}" for name, term in terms.items() if term.shape != (self.num_envs,)]
        wrong = [
            *([f"no weight in reward_scales: {', '.join(unweighted)}"] if unweighted else []),
            *([f"a weight, but not computed by step: {', '.join(missing)}"] if missing else []),
            *([f"not of shape ({self.num_envs},): {', '.join(misshapen)}"] if misshapen else []),
        ]
        if wrong:
            raise ValueError(
                f"the reward terms of env {self.cfg.name} do not match its reward_scales: {'; '.join(wrong)}. "
                "Give _pay one term (N,) for each field of the dataclass reward_scales."
            )

    def _simulate(self) -> None:
        """Steps the scene by `cfg.dt`. Raises a SimulatorError where Genesis does."""
        solver = self._scene.rigid_solver
        try:
            self._scene.step()
        except gs.GenesisException as error:
            flagged = qd_to_torch(solver._errno).tolist()
            mends = [self._mend(kind) for kind in (TOO_MANY_CONTACTS, LOST) if any(bits & kind for bits in flagged)]
            raise SimulatorError("; ".join([f"the simulator stopped: {error}", *mends])) from error
        errors = qd_to_torch(solver._errno)
        self._simulator_errors += torch.stack([(errors & kind != 0).sum() for kind in (TOO_MANY_CONTACTS, LOST)])

    def _mend(self, kind: int) -> str:
        if kind == LOST:
            return f"try env.substeps={2 * self.cfg.substeps}"
        pairs = getattr(self.cfg, "max_collision_pairs", None)
        return f"try env.max_collision_pairs={2 * pairs}" if pairs else "its scene needs more max_collision_pairs"

    def _end_episodes(self, ended: Tensor) -> Tensor:
        """Closes the books of the envs in `ended` (N,) bool and returns their sums, (K,) per second."""
        sums = torch.where(ended, self._reward_sums, 0.0).sum(dim=1) / self.cfg.episode_length_s
        self._reward_sums.masked_fill_(ended, 0.0)
        self.episode_length_buf.masked_fill_(ended, 0)
        return sums

    def _extras(self, time_outs: Tensor, episode_sums: Tensor) -> dict[str, Tensor]:
        return {"time_outs": time_outs.float(), "episode_sums": episode_sums}

    def _draw(self, low: Tensor, high: Tensor) -> Tensor:
        """A uniform draw for every env, (N, D), between low (D,) and high (D,). Costs no host sync."""
        return (high - low) * torch.rand(self.num_envs, len(low), device=self.device) + low

    def _tensor(self, values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)


def simulator_state(scene: gs.Scene) -> dict[str, Tensor]:
    """What the coming steps of `scene` depend on, by the names of Genesis' arrays, on the CPU."""
    return {item.name: _read(item) for item in _carried_over(scene)}


def restore_simulator(scene: gs.Scene, state: dict[str, Tensor]) -> None:
    """Puts `scene`, built alike and not stepped since, in the `state` that `simulator_state` read.

    What Genesis' own `Scene.__setstate__` does, without the copy of all derived arrays that it needs.
    """
    scene._sim._restart()
    scene.rigid_solver._restart()
    array_class.fill_data(_carried_over(scene), state)


def _carried_over(scene: gs.Scene) -> list[DataItem]:
    items = scene._sim.data(frozenset({DataKind.INFO, DataKind.STATE, DataKind.DERIVED}))
    return [item for item in items if item.kind != DataKind.DERIVED or CARRIED_OVER.search(item.name)]


def _read(item: DataItem) -> Tensor:
    if isinstance(item, ScalarItem):
        return torch.tensor(getattr(item.owner, item.attr))
    return torch.as_tensor(array_class.data_to_array(item.array, to_torch=False, copy=True))


def in_frame(quat: Tensor, vector: Tensor) -> Tensor:
    """World vectors (N, 3) or (3,) as seen from frames with orientations `quat` (N, 4), w x y z."""
    return transform_by_quat(vector, inv_quat(quat))


def euler_deg(quat: Tensor, init_quat: Tensor) -> Tensor:
    """Roll, pitch and yaw (N, 3) in degree of `quat` (N, 4) relative to `init_quat` (4,)."""
    return quat_to_xyz(transform_quat_by_quat(inv_quat(init_quat), quat), rpy=True, degrees=True)
