"""The training loop: rollout, update, guard, report, checkpoint."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import torch

from ppo_lab.config import STD_PARAMETERS, ExperimentConfig, InitConfig
from ppo_lab.envs.scenes import added_up
from ppo_lab.learning import guard
from ppo_lab.learning.episodes import EpisodeStatistics
from ppo_lab.learning.guard import Fault, NonFiniteError
from ppo_lab.learning.perceptron import Networks
from ppo_lab.learning.ppo import build_ppo
from ppo_lab.learning.random_state import kind_of_device, random_state, reseed, set_random_state
from ppo_lab.learning.ranks import SingleProcess
from ppo_lab.learning.reference import Reference
from ppo_lab.learning.rollout import Rollout
from ppo_lab.learning.update import LeanUpdate, network_input
from ppo_lab.memory.measure.monitor import of_all_ranks
from ppo_lab.states import check_fits

if TYPE_CHECKING:
    from ppo_lab.contracts import CheckpointStore, Env, MemoryPhases, Ranks, Report, State, Update

log = logging.getLogger(__name__)

ALONE = SingleProcess()
REFERENCE = "reference_actor_state_dict"
"""Key in a checkpoint of the policy that a run with `init.kl_coef` began with."""
FAR = 20.0
"""Deviations from the mean of an observation that a policy can hardly have learned from."""


class Iteration(NamedTuple):
    """What an iteration comes to, the same on every rank."""

    scalars: dict[str, float]
    should_stop: bool
    should_save: bool


class Loop:
    """Trains one env's policy. Every iteration, counted from 0, hands one dict of scalars to `report`."""

    next_iteration: int = 0
    """The number of the next iteration, and how many are complete."""

    def __init__(
        self,
        env: Env,
        cfg: ExperimentConfig,
        phases: MemoryPhases,
        checkpoints: CheckpointStore,
        report: Report,
        should_stop: Callable[[], bool] = lambda: False,
        ranks: Ranks = ALONE,
    ) -> None:
        """Every rank has a loop of its own, and starts from the weights of rank 0.

        Args:
            env: this rank's.
            cfg: what this rank trains, see `ExperimentConfig.of_one_rank`.
            phases: measures this rank's memory.
            checkpoints: of rank 0 alone, as is `report`; what other ranks give here does nothing.
            report: takes the scalars of all ranks.
            should_stop: asked at the end of every iteration; all stop where one rank is to.
            ranks: those that train together.
        """
        self.env = env
        self.ranks = ranks
        self.alg = build_ppo(cfg, env.get_observations())
        for tensor in (*self.alg.actor.state_dict().values(), *self.alg.critic.state_dict().values()):
            ranks.broadcast(tensor)
        self.networks = Networks.of(self.alg)
        self.reference = Reference(self.alg, self.networks, cfg.init.kl_coef) if cfg.init.kl_coef else None
        epochs = cfg.algorithm.num_learning_epochs
        self.update: Update = LeanUpdate(self.alg, self.networks, ranks, epochs, self.reference)
        self.rollout = Rollout(self.alg, self.networks)
        self.episodes = EpisodeStatistics(env.num_envs, cfg.num_steps_per_env, env.spec.rewards, env.device)
        self._phases = phases
        self._checkpoints = checkpoints
        self._report = report
        self._should_stop = should_stop
        self._num_steps_per_env = cfg.num_steps_per_env
        self._seed = cfg.seed
        self._entropy_coef_at = cfg.entropy_coef_at
        self._obs = env.get_observations()

    def learn(self, num_learning_iterations: int, init_at_random_ep_len: bool = False) -> None:
        """Runs iterations of one rollout and one update each, from `next_iteration` on.

        Raises a NonFiniteError at the end of an iteration that made NaN or Inf, before anything of it is reported or
        saved.
        """
        env = self.env
        if init_at_random_ep_len:  # or else every env would time out in the same step
            env.episode_length_buf = torch.randint_like(env.episode_length_buf, high=env.spec.max_episode_length)
        self._obs = env.get_observations()
        self.alg.train_mode()
        final = self.next_iteration + num_learning_iterations - 1
        for iteration in range(self.next_iteration, final + 1):
            scalars, should_stop, should_save = self.iterate(self._num_steps_per_env, self.update)
            self.next_iteration = iteration + 1
            self._report(iteration, scalars)
            last = iteration == final or should_stop
            is_due = last or should_save
            reward = scalars.get("Train/mean_reward")
            self._checkpoints.maybe_save(iteration, self.model, self.state() if is_due else None, reward, last)
            if last:
                break

    def iterate(self, num_steps: int, update: Update) -> Iteration:
        """One iteration, which goes on from the newest observations."""
        self.alg.entropy_coef = self._entropy_coef_at(self.next_iteration)
        started_s = self._clock_s()
        with self._phases.phase("rollout"):
            self._rollout(num_steps)
        collected_s = self._clock_s()
        with self._phases.phase("update"):
            losses = self._guarded_update(update)
        learned_s = self._clock_s()
        found = self._non_finite(losses)
        records = self.ranks.exchange(
            {
                "fault": asdict(found.fault) if found else None,
                "episodes": self.episodes.close_rollout(),
                "counts": {} if found else self.env.check(),
                "means": {f"Loss/{name}": value for name, value in losses.items()}
                | {"Perf/collection_time": collected_s - started_s, "Perf/learning_time": learned_s - collected_s},
                "memory": self._phases.scalars(),
                "stop": self._should_stop(),
                "save": self._checkpoints.is_due(self.next_iteration),
            }
        )
        self._raise_first([record["fault"] for record in records], found)
        means = {key: fmean(record["means"][key] for record in records) for key in records[0]["means"]}
        steps = num_steps * self.env.num_envs * self.ranks.world_size
        scalars = {
            **self.episodes.scalars([record["episodes"] for record in records]),
            **added_up([record["counts"] for record in records]),
            **means,
            "Loss/learning_rate": self.alg.learning_rate,
            "Policy/mean_std": self.alg.get_policy().output_std.mean().item(),
            "Perf/total_fps": steps / (means["Perf/collection_time"] + means["Perf/learning_time"]),
            **of_all_ranks([record["memory"] for record in records]),
        }
        return Iteration(scalars, any(record["stop"] for record in records), records[0]["save"])

    def model(self) -> State:
        """The learner, in rsl_rl's keys, its learning rate, and the policy that `init.kl_coef` holds it to."""
        return {
            **self.alg.save(),
            "iter": self.next_iteration - 1,
            "infos": None,
            "learning_rate": self.alg.learning_rate,
            **self._saved_reference(),
        }

    def state(self) -> State:
        """What else the coming iterations depend on, of all ranks, which call this together. Valid between iterations.

        Only rank 0 has it: {"iteration", "env", "episodes", "random"}, or {"iteration", "ranks": [one of these each]}.
        """
        own = {
            "iteration": self.next_iteration - 1,
            "env": self.env.state(),
            "episodes": self.episodes.state(),
            "random": random_state(self.env.device),
        }
        states = self.ranks.gather(own)
        return own if self.ranks.world_size == 1 else {"iteration": own["iteration"], "ranks": states}

    def begin_with(self, model: State, parts: InitConfig) -> None:
        """Begins with the weights and normalizers of another run's `model`, and with what else `parts` says.

        The learning rate stays the configured one. Raises a ValueError that names what does not fit, before anything is
        changed.
        """
        own = self.alg.actor.state_dict()
        actor = dict(model["actor_state_dict"])
        if not parts.std:
            is_std = {f"distribution.{name}" for name in STD_PARAMETERS.values()}
            actor = {name: value for name, value in actor.items() if name not in is_std}
            actor |= {name: value for name, value in own.items() if name in is_std}
        check_fits("the actor", actor, own)
        if self.reference:
            check_fits("the initial policy", model["actor_state_dict"], self.reference.actor.state_dict())
        if parts.critic:
            check_fits("the critic", model["critic_state_dict"], self.alg.critic.state_dict())
        if parts.optimizer:
            self._check_optimizer(model["optimizer_state_dict"])
        self.alg.load(model | {"actor_state_dict": actor}, {"actor": True, "critic": parts.critic}, strict=True)
        if self.reference:  # the other run's policy, whatever it saved of one that it had itself
            self.reference.load(model["actor_state_dict"])
        if parts.optimizer:
            moments = {"state": model["optimizer_state_dict"]["state"]}
            self.alg.optimizer.load_state_dict(self.alg.optimizer.state_dict() | moments)

    @torch.no_grad()
    def unfamiliar_observations(self) -> dict[str, float]:
        """The actor's terms that are now far from what its normalizer has seen: name -> deviations from the mean.

        A term that never varied has a deviation of 0, and the smallest other value of it looks huge.
        """
        if not self.alg.actor.obs_normalization:
            return {}
        terms = self.env.spec.observations["policy"]
        normalized = network_input(self.alg.actor, [self.env.get_observations()["policy"]]).abs().amax(dim=0)
        furthest = zip(terms, normalized.split([*terms.values()]), strict=True)
        return {term: far for term, values in furthest if (far := values.max().item()) > FAR}

    def restore(self, model: State, state: State) -> None:
        """Goes on where `model` and this rank's `state` were saved, identically. Nothing may be drawn before `learn`.

        On another kind of device than theirs all goes on but the device's random numbers, which begin anew; so do the
        env's draws on a checkpoint of a version before the env had a generator of its own.

        Raises a ValueError that names what does not fit this run, before anything is changed.
        """
        here, there = self.env.device.type, kind_of_device(state["random"])
        check_fits("the actor", model["actor_state_dict"], self.alg.actor.state_dict())
        check_fits("the critic", model["critic_state_dict"], self.alg.critic.state_dict())
        self._check_optimizer(model["optimizer_state_dict"])
        own = self._saved_reference()
        check_fits("a run with init.kl_coef", {name: model[name] for name in own if name in model}, own)
        check_fits("the episode statistics", state["episodes"], self.episodes.state())
        generators = random_state(self.env.device)
        saved = dict(state["random"])
        if here != there:
            saved.pop("cuda", None)
            generators.pop("cuda", None)
        check_fits(f"a run on {here}", saved, generators)
        try:
            self.env.restore(state["env"])
        except ValueError as error:
            if here == there:
                raise
            raise ValueError(
                f"{error}. It was saved on {there}, and on {here} the simulator keeps something else; "
                f"it can go on with device={there} alone"
            ) from error
        self.alg.load(model, load_cfg=None, strict=True)
        if self.reference:
            self.reference.load(model[REFERENCE])
        self.alg.learning_rate = model["learning_rate"]
        self.episodes.restore(state["episodes"])
        self.next_iteration = state["iteration"] + 1
        set_random_state(state["random"], self.env.device)
        if here != there:
            reseed(self.env.device, self._seed, self.next_iteration)
            log.warning(
                "saved on %s, the run goes on on %s, whose random numbers begin anew from seed and iteration: "
                "it will not come out as on %s alone",
                *(there, here, there),
            )

    def _saved_reference(self) -> State:
        return {REFERENCE: self.reference.actor.state_dict()} if self.reference else {}

    def _check_optimizer(self, saved: State) -> None:
        """Its moments are of the parameters' shapes, or it has none at all, as SGD."""
        parameters = [parameter for group in self.alg.optimizer.param_groups for parameter in group["params"]]
        moments = {
            f"{name} of parameter {index}": value
            for index, entry in saved["state"].items()
            for name, value in entry.items()
            if value.dim()  # not the number of steps
        }
        names = {name.split()[0] for name in moments}
        own = {f"{name} of parameter {index}": value for index, value in enumerate(parameters) for name in names}
        check_fits("the optimizer", moments, own)

    @torch.inference_mode()
    def _rollout(self, num_steps: int) -> None:
        obs = self._obs
        try:
            self.rollout.begin()
            for _ in range(num_steps):
                obs, rewards, dones, time_outs, episode_sums = self.env.step(self.rollout.act(obs))
                self.rollout.enter(rewards, dones, time_outs)
                self.episodes.add(rewards, dones, episode_sums)
        except Exception:  # the env may break over what it is given
            guard.check_interrupted(self.alg, self.next_iteration, obs)
            raise
        self._obs = obs

    def _guarded_update(self, update: Update) -> dict[str, float]:
        try:
            return update(self._obs)
        except Exception:  # torch refuses to draw from a distribution whose deviation is NaN
            guard.check_interrupted(self.alg, self.next_iteration, self._obs)
            raise

    def _non_finite(self, losses: dict[str, float]) -> NonFiniteError | None:
        try:
            guard.check(self.alg, self.next_iteration, self._obs, losses)
        except NonFiniteError as error:
            return error
        return None

    def _raise_first(self, faults: Sequence[State | None], found: NonFiniteError | None) -> None:
        """Raises a NonFiniteError, the same on every rank: of the earliest step of all, with the envs' numbers of all.

        Its evidence is of the rank that has that step.

        Args:
            faults: of all ranks.
            found: by this one.
        """
        at_fault = [rank for rank, fault in enumerate(faults) if fault]
        if not at_fault:
            return
        first = min(at_fault, key=lambda rank: _when(faults[rank]))
        evidence = self.ranks.exchange(found.evidence if found and first == self.ranks.rank else {})[first]
        raise guard.of_rank(Fault(**(faults[first] or {})), evidence, first, self.env.num_envs)

    def _clock_s(self) -> float:
        if self.env.device.type != "cpu":
            torch.accelerator.synchronize(self.env.device)
        return time.perf_counter()


def _when(fault: State | None) -> float:
    """A value of the rollout comes before the losses and weights, which have no step."""
    return math.inf if fault is None or fault["step"] is None else fault["step"]
