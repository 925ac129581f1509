"""Steps a session in real time and shows it, in one thread: the simulator is called from nowhere else."""

from __future__ import annotations

import queue
import time
from collections import deque

from ppo_lab.deploy.viewer.page import Page
from ppo_lab.deploy.viewer.session import Session

FRAME_S = 1 / 30
"""Between two poses that are sent."""
PANEL_S = 1 / 5
"""Between two updates of numbers, bars and curves."""
FOLDER_S = 2.0
"""Between two looks for new checkpoints."""
CATCH_UP_S = 0.1
"""A simulator that falls back by more than this is slower than it should be, instead of hurrying later."""


def run(session: Session, page: Page) -> None:
    """Until it is interrupted: carries out what the page asks for, steps as time passes, and shows what came of it."""
    step_at = frame_at = panel_at = folder_at = time.monotonic()
    is_drawn = is_told = False
    stepped_at: deque[float] = deque(maxlen=50)
    while True:
        now = time.monotonic()
        if not session.is_paused and now >= step_at:
            session.step()
            step_at = max(step_at, now - CATCH_UP_S) + session.dt / session.speed
            stepped_at.append(now)
            is_drawn = is_told = False
        if not is_drawn and now >= frame_at:
            page.draw()
            frame_at, is_drawn = now + FRAME_S, True
        if now >= folder_at:
            session.look_for_policies()
            folder_at, is_told = now + FOLDER_S, False
        if not is_told and now >= panel_at:
            page.tell(pace(stepped_at, now, session.dt))
            panel_at, is_told = now + PANEL_S, True
        if session.is_paused:
            stepped_at.clear()
        due = [(folder_at, True), (step_at, not session.is_paused), (frame_at, not is_drawn), (panel_at, not is_told)]
        wait_s = min(at for at, is_due in due if is_due) - time.monotonic()
        try:
            request = page.requests.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            continue
        request()
        is_drawn = is_told = False


def pace(stepped_at: deque[float], now: float, dt: float) -> float:
    """Times real time, over the last steps. `stepped_at`: when they were, s; `dt`: of one, s."""
    if len(stepped_at) < 2:
        return 0.0
    return (len(stepped_at) - 1) * dt / max(now - stepped_at[0], 1e-6)
