"""What a sweep, or any runs laid side by side, came to: a table, pictures and one page, from their folders alone.

Nothing here knows where a run ran, or loads torch.
"""

from __future__ import annotations

from pathlib import Path

from ppo_lab.files import write_atomically, write_json, write_text
from ppo_lab.report import page, pictures, results
from ppo_lab.report.jobs import Sweep, read_sweep


def write(folder: Path) -> Path:
    """Reports on a sweep, finished or not, in its own folder. Returns the page's path.

    Raises a ConfigError where `folder` is no sweep.
    """
    return write_into(folder, read_sweep(folder))


def write_into(folder: Path, sweep: Sweep) -> Path:
    """Writes sweep.csv, sweep.json, the pictures and report.html into `folder`, over those of an earlier report."""
    found = results.of(sweep)
    write_text(folder / "sweep.csv", results.as_csv(found))
    write_json(folder / "sweep.json", results.as_json(found))
    drawn = pictures.draw(found)
    for name, picture in drawn.items():
        write_atomically(folder / name, picture.save)
    write_text(folder / "report.html", page.render(found, drawn, folder))
    return folder / "report.html"
