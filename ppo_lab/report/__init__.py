"""The results of a sweep, or of any runs: a table, pictures and one page, from their folders alone.

Nothing here knows where a run ran, or loads torch.
"""

from __future__ import annotations

from pathlib import Path

from ppo_lab.report import page, pictures, results
from ppo_lab.report.job_results import RunSet, read_sweep
from ppo_lab.runs.files import write_atomically, write_json, write_text
from ppo_lab.runs.hparams import RESULTS, write_hparams


def write(folder: Path) -> Path:
    """Reports on a sweep, finished or not, in its own folder, and gives every run its row in TensorBoard's HParams.

    Returns the page's path. Raises a ConfigError where `folder` is no sweep.
    """
    sweep = read_sweep(folder)
    for job, row in zip(sweep.jobs, results.rows(results.of(sweep)), strict=True):
        if job.folder.is_dir():
            settings = {key: value for key, value in job.settings.items() if value is not None}
            write_hparams(job.folder, settings, {name: row[name] for name in RESULTS})
    return write_into(folder, sweep)


def write_into(folder: Path, sweep: RunSet) -> Path:
    """Writes sweep.csv, sweep.json, the pictures and report.html into `folder`, over those of an earlier report."""
    found = results.of(sweep)
    write_text(folder / "sweep.csv", results.as_csv(found))
    write_json(folder / "sweep.json", results.as_json(found))
    drawn = pictures.draw(found)
    for name, picture in drawn.items():
        write_atomically(folder / name, picture.save)
    write_text(folder / "report.html", page.render(found, drawn, folder))
    return folder / "report.html"
