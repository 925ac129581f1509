"""A checkpoint of rsl-rl-lib 2.2.4 in today's form: the same tensors under other names."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppo_lab.config import ExperimentConfig, layers
from ppo_lab.contracts import State
from ppo_lab.errors import ConfigError
from ppo_lab.memory.predict import closed_form

NORMALIZERS = {"actor": "obs_norm_state_dict", "critic": "critic_obs_norm_state_dict"}


@dataclass(frozen=True)
class Parameter:
    """One tensor that is learned."""

    old_name: str
    model: str
    """actor or critic."""
    name: str
    shape: tuple[int, ...]


def parameters(cfg: ExperimentConfig) -> list[Parameter]:
    """Every parameter of the policy that `cfg` describes, in the order of the optimizer, which is the old one."""
    found = []
    for spec in closed_form.parameters(cfg):
        model, _, name = spec.name.partition(".")
        part, _, rest = name.partition(".")
        old_name = f"{model}.{rest}" if part == "mlp" else rest.removesuffix("_param")
        found.append(Parameter(old_name, model, name, spec.shape))
    return found


def read(data: bytes, cfg: ExperimentConfig, iteration: int) -> State:
    """The checkpoint `model_<iteration>.pt` with content `data` as ours of that iteration. Raises a ConfigError."""
    try:
        old = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever kind: torch does not say which, for bytes of unknown origin
        raise ConfigError(f"it is no checkpoint of tensors and plain data ({type(error).__name__}).") from None
    if not isinstance(old, dict):
        raise ConfigError(f"it holds a {type(old).__name__}. Allowed: what rsl-rl-lib 2.2.4 saves, a dict.")
    if "actor_state_dict" in old:
        raise ConfigError("it is of a newer rsl-rl-lib. Allowed: checkpoints of rsl-rl-lib 2.2.4.")
    allowed = {"model_state_dict", "optimizer_state_dict", "iter", "infos"}
    if cfg.network.actor.obs_normalization:
        allowed |= set(NORMALIZERS.values())
    if set(old) != allowed:
        wrong = ", ".join(sorted(map(_shown, set(old) ^ allowed)))
        raise ConfigError(f"missing, or not foreseen by cfgs.pkl: {wrong}. Allowed: {', '.join(sorted(allowed))}.")
    if not isinstance(old["iter"], int) or old["iter"] != iteration:
        raise ConfigError(f"its iteration is {_shown(old['iter'])}, not {iteration}. Rename it to what it holds.")

    models: dict[str, dict[str, Tensor]] = {"actor": {}, "critic": {}}
    if cfg.network.actor.obs_normalization:
        for model, normalizer in _normalizers(
            old, {model: shapes[0][0] for model, shapes in layers(cfg).items()}
        ).items():
            models[model] |= {f"obs_normalizer.{name}": tensor for name, tensor in normalizer.items()}
    foreseen = parameters(cfg)
    tensors = _dict(old["model_state_dict"], "model_state_dict")
    for parameter in foreseen:
        models[parameter.model][parameter.name] = _tensor(tensors, parameter.old_name, parameter.shape)
    for name in set(tensors) - {parameter.old_name for parameter in foreseen}:
        raise ConfigError(f"model_state_dict has {_shown(name)}, which cfgs.pkl does not foresee.")
    optimizer = _adam(_dict(old["optimizer_state_dict"], "optimizer_state_dict"), foreseen)
    return {
        "actor_state_dict": models["actor"],
        "critic_state_dict": models["critic"],
        "optimizer_state_dict": optimizer,
        "iter": iteration,
        "infos": None,
        "learning_rate": optimizer["param_groups"][0]["lr"],
    }


def _normalizers(old: State, widths: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    """Of each network, by its name, as `widths`: the numbers in one of its observations."""
    found = {}
    for model, key in NORMALIZERS.items():
        tensors = _dict(old[key], key)
        found[model] = {name: _tensor(tensors, name, (1, widths[model])) for name in ("_mean", "_var", "_std")}
        found[model]["count"] = _tensor(tensors, "count", (), torch.int64)
    if found["critic"]["count"] == 0:  # the old env had no critic observations; the critic saw the actor's
        found["critic"] = {name: tensor.clone() for name, tensor in found["actor"].items()}
    return found


def _adam(old: dict[Any, Any], foreseen: list[Parameter]) -> dict[str, Any]:
    """The optimizer's state. Only the learning rate was ever set; all else in its group is Adam's default."""
    everything = list(range(len(foreseen)))
    match old:
        case {"state": dict(state), "param_groups": [{"lr": float(lr), "params": indices}]} if indices == everything:
            pass
        case _:
            raise ConfigError(f"optimizer_state_dict is not one of Adam over {len(foreseen)} parameters.")
    if set(state) != set(everything) or not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"optimizer_state_dict is not that of a run that has learned: lr={lr}, {len(state)} moments.")
    moments = {}
    for index, parameter in enumerate(foreseen):
        name = f"moments of {parameter.old_name}"
        entry = _dict(state[index], name)
        moments[index] = {
            "step": _tensor(entry, "step", (), of=name),
            "exp_avg": _tensor(entry, "exp_avg", parameter.shape, of=name),
            "exp_avg_sq": _tensor(entry, "exp_avg_sq", parameter.shape, of=name),
        }
    group = torch.optim.Adam([torch.zeros(1)], lr=lr).state_dict()["param_groups"][0]
    return {"state": moments, "param_groups": [group | {"params": everything}]}


def _shown(value: Any) -> str:
    """A value from the old file, on one line."""
    return repr(value)[:60] if isinstance(value, str | int) else f"a {type(value).__name__}"


def _dict(value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{name} is a {type(value).__name__}. Allowed: a dict.")
    return value


def _tensor(
    tensors: dict[Any, Any], name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, of: str = ""
) -> Tensor:
    """A copy of `tensors[name]`."""
    value, what = tensors.get(name), f"{name} {of and f'in the {of}'}".strip()
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        raise ConfigError(f"{what} is missing or no tensor; cfgs.pkl foresees one of shape {shape}.")
    if (tuple(value.shape), value.dtype) != (shape, dtype):
        raise ConfigError(f"{what} is {value.dtype} {tuple(value.shape)}; cfgs.pkl foresees {dtype} {shape}.")
    return value.detach().clone(memory_format=torch.contiguous_format)
