"""`ppo-lab view RUN`: a run's policy acts live in the browser, where it is steered, pushed, and exchanged."""

from __future__ import annotations

import contextlib
import webbrowser
from dataclasses import dataclass

from ppo_lab.cli import on_run, waiting
from ppo_lab.config import setting
from ppo_lab.errors import RunFailedError, SimulatorError
from ppo_lab.machine import devices, preflight


@dataclass
class View:
    """What is asked of a run. Values are in conf/commands/view.yaml."""

    checkpoint: str = on_run.checkpoint()
    speed: float = setting(at_least=0.1, at_most=4.0)
    paused: bool = setting()
    shadows: bool = setting()
    port: int = setting(at_least=1024, at_most=65535)
    open: bool = setting()
    seed: int = on_run.seed()
    device: str = on_run.device()


def main(argv: list[str]) -> None:
    """Raises a ConfigError."""
    trained, asked = on_run.read(argv, "view", View)
    (checkpoint,) = trained.checkpoints(asked.checkpoint)
    preflight.check_system_libraries()
    from ppo_lab.deploy.stage import visible_env
    from ppo_lab.deploy.viewer import loop  # loads torch
    from ppo_lab.deploy.viewer.page import Page
    from ppo_lab.deploy.viewer.session import Checkpoints, Session

    device = devices.resolve_device(asked.device)
    with waiting.shown(else_lines=True) as say:
        say(f"building {trained.cfg.env.name}")
        env = visible_env(trained.cfg.env, device, asked.seed)
        policies = Checkpoints(trained, device)
        session = Session(env, policies, policies.name_of(checkpoint))
        session.speed, session.is_paused = asked.speed, asked.paused
        title = f"{trained.cfg.env.name}: {trained.folder.name}"
        page = Page(env, session, title, asked.port, asked.shadows)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            print(address(page.port, asked.port), flush=True)
            if asked.open:
                webbrowser.open(f"http://localhost:{page.port}")
            loop.run(session, page)
    except SimulatorError as error:
        raise RunFailedError(str(error)) from None
    finally:
        page.close()


def address(port: int, wanted: int) -> str:
    """What is said once the page is served on `port`."""
    taken = "" if port == wanted else f" (port {wanted} is taken)"
    return (
        f"http://localhost:{port}{taken}\n"
        f"  from another machine, first there: ssh -L {port}:localhost:{port} NAME_OF_THIS_MACHINE\n"
        "Ctrl-C ends it."
    )
