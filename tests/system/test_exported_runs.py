"""Go2 and the drone are driven by an export as by the checkpoint that it was made of."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo_lab.deploy.episodes import play
from ppo_lab.deploy.export import ENVS, export
from ppo_lab.deploy.exported import RunnerPolicy
from ppo_lab.deploy.runner import EXAMPLE, Runner, replay
from ppo_lab.deploy.script import ScriptPolicy
from ppo_lab.deploy.stage import watched_env
from ppo_lab.deploy.trained import Trained
from tests.paths import REPOSITORY

RUNS = REPOSITORY / "tests" / "fixtures" / "runs_before_generators"
MEASURED = {
    "go2": {"base_ang_vel", "projected_gravity", "commands", "joint_pos", "joint_vel"},
    "hover": {"rel_pos", "quat", "lin_vel", "ang_vel"},
}


@pytest.mark.parametrize("name", MEASURED)
def test_an_export_of_a_run_drives_its_robot_as_the_checkpoint_does(
    name: str, simulator: torch.device, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(RUNS / name, tmp_path / "a run"))
    trained = Trained.read(folder, {"env.episode_length_s": 0.5})
    (checkpoint,) = trained.checkpoints("last")
    env = watched_env(trained.cfg.env, ENVS, simulator, seed=1)
    start = env.state()
    found = export(trained, checkpoint, env, folder / "export")
    assert max(found.onnxruntime, found.torchscript) < 1e-5
    assert replay(folder / "export").agree

    runner = Runner(folder / "export")
    with np.load(folder / "export" / EXAMPLE) as rollout:
        sensors = {source: rollout[f"sensors/{source}"] for source in MEASURED[name]}
        observations = rollout["observations"]
        acted = np.abs(rollout["actions"]).max()
    assert acted > 0.01
    width = observations.shape[1] - len(runner.joints)  # without the policy's own actions
    assert np.array_equal(runner.observe(sensors)[:, :width], observations[:, :width])

    from_folder = RunnerPolicy(folder / "export")
    from_folder.check_fits(trained.cfg.env)
    from_file = ScriptPolicy(folder / "export" / "policy.pt", env.spec, simulator)
    actings = trained.policy(checkpoint, simulator).mean, from_folder.on(env), from_file.on(env)
    played = []
    with torch.inference_mode():
        for act in actings:
            env.restore(start)
            played.append(play(env, act))
    expected, by_folder, by_file = played
    assert torch.equal(by_file.returns, expected.returns)
    assert torch.equal(by_folder.lengths, expected.lengths)
    assert torch.allclose(by_folder.returns, expected.returns, rtol=1e-3)
    for quantity, values in expected.measured.items():
        assert torch.allclose(by_folder.measured[quantity], values, rtol=1e-2, atol=1e-3, equal_nan=True), quantity
