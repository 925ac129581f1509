"""How good policies are: statistics of one episode in each of many envs, for each policy under each condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ppo_lab.deploy.episodes import Episodes, play, rate, statistics
from ppo_lab.deploy.exported import RunnerPolicy
from ppo_lab.deploy.script import ScriptPolicy
from ppo_lab.deploy.stage import watched_env
from ppo_lab.deploy.trained import Trained
from ppo_lab.runs.manifest import describe_machine, packages, read_checkout

if TYPE_CHECKING:
    from tensordict import TensorDict
    from torch import Tensor

    from ppo_lab.contracts import Policy, WatchedEnv

VERSION = 1
"""Of the JSON; docs/evaluate.md has its keys. One that is removed or means something else raises it."""


class Plan(NamedTuple):
    """How policies are played."""

    episodes: int
    """Envs, each of which plays one."""
    is_sampled: bool
    """Whether actions are sampled, as in training, instead of the mean."""
    seed: int


class Candidate(NamedTuple):
    """A policy to be evaluated."""

    name: str
    """The checkpoint's file, or the policy's."""
    iteration: int | None
    """The number of updates it had, less one; None where it comes from elsewhere."""
    policy: Policy | RunnerPolicy | ScriptPolicy


@torch.inference_mode()
def evaluate(
    conditions: Mapping[str, Trained],
    candidates: Sequence[Candidate],
    plan: Plan,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Plays every candidate under every condition, from the same starts; gives one result each, see docs/evaluate.md.

    Raises a ConfigError where the env cannot be looked into.
    """
    results = []
    for condition, trained in conditions.items():
        say(f"building {plan.episodes} envs of {trained.cfg.env.name}")
        env = watched_env(trained.cfg.env, plan.episodes, device, plan.seed)
        start = env.state()
        for candidate in candidates:
            where = f", {condition}" if len(conditions) > 1 else ""
            say(f"evaluating {candidate.name}{where}")
            torch.manual_seed(plan.seed)
            act = _acting(candidate.policy, env, plan.is_sampled)
            results.append(result_of(play(env, act), candidate, condition, env.spec.dt))
            if candidate is not candidates[-1]:
                env.restore(start)
    return results


def _acting(
    policy: Policy | RunnerPolicy | ScriptPolicy, env: WatchedEnv, is_sampled: bool
) -> Callable[[TensorDict], Tensor]:
    if isinstance(policy, RunnerPolicy | ScriptPolicy):
        return policy.on(env)
    return policy.act if is_sampled else policy.mean


def result_of(episodes: Episodes, candidate: Candidate, condition: str, dt: float) -> dict[str, Any]:
    """The statistics of one policy under one condition. `dt`: s."""
    return {
        "policy": candidate.name,
        "iteration": candidate.iteration,
        "condition": condition,
        "episodes": len(episodes.returns),
        "return": statistics(episodes.returns),
        "episode_length_s": statistics(episodes.lengths * dt),
        "rewards": {name: statistics(values) for name, values in episodes.rewards.items()},
        "endings": {name: rate(ended) for name, ended in episodes.endings.items()},
        "measured": {name: statistics(values) for name, values in episodes.measured.items()},
    }


def document(
    trained: Trained, conditions: Mapping[str, Trained], plan: Plan, device: torch.device, results: Iterable[Any]
) -> dict[str, Any]:
    """What is written into RUN/evaluation/<name>.json; docs/evaluate.md says what each key means."""
    return {
        "version": VERSION,
        "run": str(trained.folder),
        "env": trained.cfg.env.name,
        "evaluated": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": read_checkout().commit,
        "packages": packages(),
        "machine": describe_machine(device),
        "episodes": plan.episodes,
        "actions": "sampled" if plan.is_sampled else "mean",
        "seed": plan.seed,
        "conditions": {name: dict(condition.changes) for name, condition in conditions.items()},
        "results": list(results),
    }


def checkpoints(trained: Trained, files: Sequence[Path], device: torch.device) -> list[Candidate]:
    """The policies of these checkpoints of the run. Raises a ConfigError."""
    return [_candidate(trained, path, device) for path in files]


def _candidate(trained: Trained, path: Path, device: torch.device) -> Candidate:
    policy = trained.policy(path, device)
    return Candidate(path.name, policy.iteration, policy)


def added_to(earlier: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`now` with those results of `earlier` that were got in the same way, and that it has not anew.

    Both are documents; `earlier` is empty where there is none.
    """
    same = ("version", "run", "env", "episodes", "actions", "seed", "conditions", "commit", "packages")
    if any(earlier.get(key) != now[key] for key in same):
        return now
    try:
        by_key = {_key(result): result for result in [*earlier["results"], *now["results"]]}
    except (KeyError, TypeError):  # somebody has changed the file
        return now
    return now | {"results": sorted(by_key.values(), key=lambda result: (result["iteration"] or 0, result["policy"]))}


def _key(result: Mapping[str, Any]) -> tuple[str, int | None, str]:
    return result["policy"], result["iteration"], result["condition"]


def scalars(document: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """What TensorBoard shows of a document: iteration -> tag -> value; docs/glossary.md has the tags."""
    found: dict[int, dict[str, float]] = {}
    for result in document["results"]:
        if result["iteration"] is None:
            continue
        prefix = "Evaluation" if len(document["conditions"]) == 1 else f"Evaluation {result['condition']}"
        means = {"return": result["return"], "episode_length_s": result["episode_length_s"], **result["measured"]}
        means |= {f"reward_{name}": of for name, of in result["rewards"].items()}
        rows = {name: of["mean"] for name, of in means.items() if of["mean"] is not None}
        rows |= {f"ended_{name}": of["rate"] for name, of in result["endings"].items()}
        found.setdefault(result["iteration"], {}).update({f"{prefix}/{name}": value for name, value in rows.items()})
    return dict(sorted(found.items()))
