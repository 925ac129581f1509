"""The training loop, around rsl_rl's PPO, models and storage."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from rsl_rl.algorithms import PPO

from ppo_lab.config import ExperimentConfig, ModelConfig
from ppo_lab.learning import guard
from ppo_lab.learning.checkpoint import begin_anew, kind_of_device, random_state, set_random_state
from ppo_lab.learning.episodes import EpisodeStatistics
from ppo_lab.states import check_fits

if TYPE_CHECKING:
    from tensordict import TensorDict

    from ppo_lab.envs import VecEnv
    from ppo_lab.learning.checkpoint import Checkpoints, State
    from ppo_lab.memory.measure.monitor import MemoryMonitor

log = logging.getLogger(__name__)

Report = Callable[[int, dict[str, float]], None]


class Runner:
    """The training loop in one process, which hands one dict of scalars an iteration to `report`."""

    next_iteration: int = 0
    """How many iterations are complete, and the number of the next, since they are counted from 0."""

    def __init__(
        self,
        env: VecEnv,
        cfg: ExperimentConfig,
        monitor: MemoryMonitor,
        checkpoints: Checkpoints,
        report: Report,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`should_stop` is asked at the end of every iteration."""
        self.env = env
        self.cfg = rsl_rl_config(cfg)
        if os.environ.get("WORLD_SIZE", "").isdecimal() and int(os.environ["WORLD_SIZE"]) > 1:
            log.info("WORLD_SIZE=%s is ignored: one process trains this run", os.environ["WORLD_SIZE"])
        with contextlib.redirect_stdout(_LogLines()):  # rsl_rl prints the networks
            self.alg = PPO.construct_algorithm(env.get_observations(), env, self.cfg, str(env.device))
        self.monitor = monitor
        self.checkpoints = checkpoints
        self.report = report
        self.should_stop = should_stop
        self._seed = cfg.seed
        self.episodes = EpisodeStatistics(env.num_envs, cfg.num_steps_per_env, env.reward_names, env.device)

    def learn(self, num_learning_iterations: int, init_at_random_ep_len: bool = False) -> None:
        """Runs iterations of one rollout and one update each, from `next_iteration` on.

        Raises a NonFiniteError at the end of an iteration that made NaN or Inf, before anything of it is reported or
        saved.
        """
        if init_at_random_ep_len:  # or else every env would time out in the same step
            self.env.episode_length_buf = torch.randint_like(
                self.env.episode_length_buf, high=self.env.max_episode_length
            )
        obs = self.env.get_observations()
        self.alg.train_mode()
        final = self.next_iteration + num_learning_iterations - 1
        for iteration in range(self.next_iteration, final + 1):
            started_s = self._clock_s()
            with self.monitor.phase("rollout"):
                obs = self._rollout(obs)
            collected_s = self._clock_s()
            with self.monitor.phase("update"):
                losses = self._update(obs)
            learned_s = self._clock_s()
            guard.check(self.alg, iteration, obs, losses)

            scalars = {
                **self.episodes.scalars(),
                **self.env.check(),
                **{f"Loss/{name}": value for name, value in losses.items()},
                "Loss/learning_rate": self.alg.learning_rate,
                "Policy/mean_std": self.alg.get_policy().output_std.mean().item(),
                "Perf/total_fps": self._transitions / (learned_s - started_s),
                "Perf/collection_time": collected_s - started_s,
                "Perf/learning_time": learned_s - collected_s,
                **self.monitor.scalars(),
            }
            self.next_iteration = iteration + 1
            self.report(iteration, scalars)
            last = iteration == final or self.should_stop()
            self.checkpoints.offer(iteration, self.model, self.state, scalars.get("Train/mean_reward"), last)
            if last:
                break

    def model(self) -> State:
        """The learner, in rsl_rl's keys, and its learning rate."""
        return self.alg.save() | {
            "iter": self.next_iteration - 1,
            "infos": None,
            "learning_rate": self.alg.learning_rate,
        }

    def state(self) -> State:
        """What else the coming iterations depend on. Valid between iterations."""
        return {
            "iteration": self.next_iteration - 1,
            "env": self.env.state(),
            "episodes": self.episodes.state(),
            "random": random_state(self.env.device),
        }

    def restore(self, model: State, state: State) -> None:
        """Goes on where `model` and `state` were saved, bit for bit. Nothing may be drawn before `learn`.

        On another kind of device than theirs all goes on but the device's random numbers, which begin anew.

        Raises a ValueError that names what does not fit this run, before anything is changed.
        """
        here, there = self.env.device.type, kind_of_device(state["random"])
        check_fits("the actor", model["actor_state_dict"], self.alg.actor.state_dict())
        check_fits("the critic", model["critic_state_dict"], self.alg.critic.state_dict())
        self._check_optimizer(model["optimizer_state_dict"])
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
        self.alg.learning_rate = model["learning_rate"]
        self.episodes.restore(state["episodes"])
        self.next_iteration = state["iteration"] + 1
        set_random_state(state["random"], self.env.device)
        if here != there:
            begin_anew(self.env.device, self._seed, self.next_iteration)
            log.warning(
                "saved on %s, the run goes on on %s, whose random numbers begin anew from seed and iteration: "
                "it will not come out as on %s alone",
                *(there, here, there),
            )

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
    def _rollout(self, obs: TensorDict) -> TensorDict:
        try:
            for _ in range(self.cfg["num_steps_per_env"]):
                obs, rewards, dones, extras = self.env.step(self.alg.act(obs))
                self.alg.process_env_step(obs, rewards, dones, extras)
                self.episodes.add(rewards, dones, extras["episode_sums"])
        except Exception:  # the env may break over what it is given
            guard.check_interrupted(self.alg, self.next_iteration, obs)
            raise
        return obs

    def _update(self, obs: TensorDict) -> dict[str, float]:
        try:
            with torch.inference_mode():
                self.alg.compute_returns(obs)
            return self.alg.update()
        except Exception:  # torch refuses to draw from a distribution whose deviation is NaN
            guard.check_interrupted(self.alg, self.next_iteration, obs)
            raise

    @property
    def _transitions(self) -> int:
        return self.cfg["num_steps_per_env"] * self.env.num_envs

    def _clock_s(self) -> float:
        if self.env.device.type != "cpu":
            torch.accelerator.synchronize(self.env.device)
        return time.perf_counter()


def rsl_rl_config(cfg: ExperimentConfig) -> dict[str, Any]:
    """The experiment as rsl_rl 5.5 wants it: plain dicts, every key that `PPO.construct_algorithm` reads."""
    return {
        "num_steps_per_env": cfg.num_steps_per_env,
        "multi_gpu": None,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "algorithm": {"class_name": "PPO", **dataclasses.asdict(cfg.algorithm)},
        "actor": _mlp(cfg.network.actor)
        | {
            "distribution_cfg": {
                "class_name": "GaussianDistribution",
                "init_std": cfg.network.actor.init_std,
                "std_type": cfg.network.actor.std_type,
            }
        },
        "critic": _mlp(cfg.network.critic),
    }


def _mlp(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "class_name": "MLPModel",
        "hidden_dims": list(cfg.hidden_dims),
        "activation": cfg.activation,
        "obs_normalization": cfg.obs_normalization,
    }


class _LogLines:
    """A stream whose lines go to the log."""

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            log.debug(line)
        return len(text)

    def flush(self) -> None:
        pass
