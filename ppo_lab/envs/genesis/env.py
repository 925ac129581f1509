"""An env with a Genesis scene: stepping it, its errors, its state."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import genesis as gs
import numpy as np
import torch
from genesis.utils.array_class import ErrorCode
from genesis.utils.geom import trans_to_T
from genesis.utils.misc import qd_to_torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_lab.config import EnvConfig
from ppo_lab.contracts import State
from ppo_lab.envs import LOOKS
from ppo_lab.envs.batched import BatchedEnv
from ppo_lab.envs.genesis.shapes import glb
from ppo_lab.envs.genesis.start import ensure_started
from ppo_lab.envs.genesis.state import from_older_version, restore_simulator, simulator_state
from ppo_lab.errors import SimulatorError
from ppo_lab.states import check_fits

log = logging.getLogger(__name__)

TOO_MANY_CONTACTS = (
    ErrorCode.OVERFLOW_COLLISION_PAIRS | ErrorCode.OVERFLOW_CANDIDATE_CONTACTS | ErrorCode.OVERFLOW_CONTACTS
)
"""What Genesis flags in an env when it leaves out contacts because its arrays are full."""
LOST = ErrorCode.INVALID_CONTACT_NAN | ErrorCode.INVALID_FORCE_NAN | ErrorCode.INVALID_ACC_NAN
"""What Genesis flags when an env's state is no longer finite."""

AMBIENT_LIGHT = (0.3, 0.3, 0.3)
MARK_RADIUS_M, MARK_COLOR = 0.03, (1.0, 0.3, 0.1, 1.0)
"""Of a target, in pictures."""


class GenesisEnv(BatchedEnv):
    """N envs in one scene. A subclass makes `self._scene` with `_new_scene` in its `__init__`, and calls `_simulate`.

    The first env of a process starts the simulator.
    """

    _scene: gs.Scene

    def __init__(self, cfg: EnvConfig, num_envs: int, device: torch.device, seed: int) -> None:
        ensure_started(device, seed, cfg.performance_mode)
        super().__init__(cfg, num_envs, device, seed)
        self._looks = LOOKS.get()
        self._marks: tuple[Any, ...] = ()
        self._simulator_errors = torch.zeros(2, dtype=torch.int64, device=device)  # too many contacts, lost
        self._has_warned_of_lost = False

    def check(self) -> dict[str, float]:
        """Genesis forgets an env's error when the env is reset, so that a step that ends such episodes hides it."""
        too_many_contacts, lost = self._simulator_errors.tolist()
        self._simulator_errors.zero_()
        if too_many_contacts:
            raise SimulatorError(
                f"the simulator met more contacts than it has room for, in {too_many_contacts} steps of single envs "
                f"in one iteration; {self._hint(TOO_MANY_CONTACTS)}"
            )
        if not lost:
            return {}
        if not self._has_warned_of_lost:
            self._has_warned_of_lost = True
            log.warning("the simulator lost an env %d times in one iteration; %s", lost, self._hint(LOST))
        return {"Simulator/lost_envs": lost}

    def state(self) -> State:
        return super().state() | {"simulator": simulator_state(self._scene)}

    def restore(self, state: State) -> None:
        own = simulator_state(self._scene)
        simulator = from_older_version(state["simulator"], own)
        check_fits("the simulator", simulator, own)
        super().restore(state)
        restore_simulator(self._scene, simulator)

    def robot_box(self) -> Tensor:
        return self._entities()[0].get_AABB()

    def get_targets(self) -> Tensor:
        return torch.zeros(self.num_envs, 0, 3, device=self.device)

    def picture(self, position: Sequence[float], look_at: Sequence[float]) -> np.ndarray:
        self._mark_targets()
        self._camera.set_pose(pos=position, lookat=look_at, up=(0.0, 0.0, 1.0))
        seen, *_ = self._camera.render(force_render=True)  # or it would not see that a state was restored
        return np.ascontiguousarray(seen)

    def _mark_targets(self) -> None:
        """Draws a ball at each target of env 0. The simulator does not know of it."""
        targets = self.get_targets()[0].cpu().numpy()
        if len(self._marks) != len(targets):
            draw = self._scene.draw_debug_sphere
            self._marks = tuple(draw(target, radius=MARK_RADIUS_M, color=MARK_COLOR) for target in targets)
        self._scene.update_debug_objects(self._marks, tuple(trans_to_T(target) for target in targets))

    def shapes(self) -> list[bytes]:
        return [glb(link) for entity in self._entities() for link in entity.links]

    def poses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        positions = torch.cat([entity.get_links_pos(envs_idx=[0])[0] for entity in self._entities()])
        quats = torch.cat([entity.get_links_quat(envs_idx=[0])[0] for entity in self._entities()])
        return positions.double().cpu().numpy(), quats.double().cpu().numpy()

    def push(self, velocity: Sequence[float]) -> None:
        base, linear = self._entities()[0], [0, 1, 2]
        pushed = base.get_dofs_velocity(linear, envs_idx=[0]) + self._tensor(velocity)
        base.set_dofs_velocity(pushed, linear, envs_idx=[0])

    def _entities(self) -> list[Any]:
        """Those that can move first: the robot is the first of them."""
        return sorted(self._scene.entities, key=lambda entity: entity.base_link.is_fixed)

    def _new_scene(self, **options: Any) -> gs.Scene:
        """A scene with the time step of `cfg` and, where the env is to be seen, a camera; `options` are Genesis'.

        It ends with the env: the garbage collector would end its parts in any order, which Genesis does not survive.
        """
        sim_options = gs.options.SimOptions(dt=self.cfg.dt, substeps=self.cfg.substeps)
        looks = self._looks if self._looks and self._looks.width_px else None
        if looks:
            options["vis_options"] = gs.options.VisOptions(rendered_envs_idx=[0], ambient_light=AMBIENT_LIGHT)
        scene = gs.Scene(sim_options=sim_options, show_viewer=False, **options)
        weakref.finalize(self, scene.destroy).atexit = False  # at the end of the process Genesis does it
        if looks:
            resolution = looks.width_px, looks.height_px
            self._camera = scene.add_camera(res=resolution, fov=looks.field_of_view_deg, debug=True)  # sees the marks
        return scene

    def _simulate(self) -> None:
        """Steps the scene by `cfg.dt`. Raises a SimulatorError where Genesis does."""
        solver = self._scene.rigid_solver
        try:
            self._scene.step()
        except gs.GenesisException as error:
            flagged = qd_to_torch(solver._errno).tolist()
            hints = [self._hint(kind) for kind in (TOO_MANY_CONTACTS, LOST) if any(bits & kind for bits in flagged)]
            raise SimulatorError("; ".join([f"the simulator stopped: {error}", *hints])) from error
        errors = qd_to_torch(solver._errno)
        self._simulator_errors += torch.stack([(errors & kind != 0).sum() for kind in (TOO_MANY_CONTACTS, LOST)])

    def _hint(self, kind: int) -> str:
        if kind == LOST:
            return f"try env.substeps={2 * self.cfg.substeps}"
        pairs: Any = getattr(self.cfg, "max_collision_pairs", None)
        return f"try env.max_collision_pairs={2 * pairs}" if pairs else "its scene needs more max_collision_pairs"
