"""A real sweep, through the real command, and what a person then sees of it in a real browser.

Of the puck of docs/add_an_env.md, whose runs start in seconds, and of an env on the simulator, which is slow.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.support.wait import WebDriverWait
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.screenshots import CHROMIUM, DRIVER, EVERYWHERE, open_chromium
from ppo_lab.errors import ExitCode
from ppo_lab.memory.predict import calibration
from ppo_lab.runs import hparams
from ppo_lab.sweeps import jobs
from tests.lab import Lab, ended
from tests.paths import REPOSITORY

TINY = ["experiment=smoke", "device=cpu"]
ITERATIONS = 3
RUN = [
    *(*TINY, f"max_iterations={ITERATIONS}", "num_steps_per_env=24", "env.episode_length_s=0.3"),
    *("memory.count_tensors=true", "algorithm.schedule=fixed"),
]
"""Episodes of up to 30 steps, so that some end."""
SWEPT = ["-m", "algorithm.learning_rate=1e-3,1e30,1e-4", "sweep.jobs_per_device=2"]
"""Three jobs, of which the second breaks."""

MINUS = "\N{MINUS SIGN}"

Train = Callable[..., subprocess.CompletedProcess[str]]
needs_a_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver; apt-get install chromium chromium-driver"
)

TABLE = """
return [...arguments[0].shadowRoot.querySelectorAll('tr')].filter(row => row.checkVisibility()).map(row =>
  [...row.children].map(cell => cell.querySelector('slot').assignedElements().map(e => e.innerText.trim()).join('')));
"""
"""The texts of a vaadin-grid, row by row; their order in the document is not the one that is seen."""


on_the_simulator = pytest.mark.parametrize("real", ["hover"], indirect=True, scope="module")


def in_a_browser(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.slow(needs_a_browser(on_the_simulator(test)))


@pytest.fixture(scope="module", params=["puck", pytest.param("hover", marks=pytest.mark.slow)])
def real(
    request: pytest.FixtureRequest, train: Train, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    env = f"env={request.param}"
    here = tmp_path_factory.mktemp("real")
    folder = here / "a sweep"
    overrides = [env, *RUN, *SWEPT, f"hydra.sweep.dir={folder}"]
    if request.param == "hover":
        return folder, train(*overrides)
    lab = Lab(here)
    (lab.site / "genesis.py").write_text("raise ImportError('nothing of this needs the simulator')")
    counted = [sys.executable, str(REPOSITORY / "estimate.py"), env, *RUN]
    subprocess.run(counted, cwd=here, env=lab.environment(), check=True, capture_output=True)  # it counts a new env
    process = lab.start(*overrides)
    code, out, errors = ended(process)
    return folder, subprocess.CompletedProcess(process.args, code, out, errors)


@pytest.fixture(scope="module")
def sweep(real: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return real[0]


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def peaks(run: Path) -> list[float]:
    return [row[f"Memory/{name}_mib"] for row in rows_of(run) for name in ("rollout_peak", "update_peak", "resident")]


def test_a_sweep_whose_second_job_fails_completes_the_others_and_ends_with_code_1(
    real: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = real
    assert done.returncode == ExitCode.FAILED, done.stderr
    assert done.stderr == ""
    first, second, third = jobs.read(folder).jobs
    assert (first.status, second.status, third.status) == ("completed", "failed", "completed")
    assert second.message
    assert second.message.startswith("losses are not finite in iteration 0: value: nan; ")
    assert f"sweep folder: {folder}" in done.stdout
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert (folder / "report.html").exists()
    assert f"job 2 completed | iteration {ITERATIONS}/{ITERATIONS} | {third.name}" in done.stdout
    for job in (first, second, third):
        assert json.loads((folder / job.folder / "manifest.json").read_text())["overrides"] == list(job.overrides)


def test_the_third_job_of_a_sweep_holds_as_many_bytes_as_the_first(sweep: Path) -> None:
    first, _, third = jobs.read(sweep).jobs
    assert len(peaks(sweep / first.folder)) == 3 * ITERATIONS
    assert peaks(sweep / third.folder) == peaks(sweep / first.folder)


@pytest.mark.slow
@on_the_simulator
def test_a_job_of_a_sweep_holds_as_many_bytes_as_the_same_run_alone(sweep: Path, train: Train, tmp_path: Path) -> None:
    third = jobs.read(sweep).jobs[2]
    assert train(*third.overrides, f"hydra.run.dir={tmp_path / 'alone'}").returncode == 0
    assert peaks(sweep / third.folder) == peaks(tmp_path / "alone")


def test_the_report_says_what_metrics_jsonl_says(sweep: Path) -> None:
    table = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [row["status"] for row in table] == ["completed", "failed", "completed"]
    for row, job in zip(table, jobs.read(sweep).jobs, strict=True):
        if row["status"] == "completed":
            rows = rows_of(sweep / job.folder)
            rewards = [found["Train/mean_reward"] for found in rows if "Train/mean_reward" in found]
            seconds = sum(found["Perf/collection_time"] + found["Perf/learning_time"] for found in rows)
            assert row["final_reward"] == rewards[-1]
            assert row["best_reward"] == max(rewards)
            assert row["training_s"] == pytest.approx(seconds)
            assert row["steps_per_s"] == pytest.approx(16 * 24 * ITERATIONS / seconds)
            assert row["measured_peak_mib"] == max(found["Memory/allocated_peak_mib"] for found in rows)
            assert row["predicted_peak_mib"] == row["measured_peak_mib"], "on a CPU it is exact"


@pytest.mark.slow
def test_a_killed_job_resumed_with_its_sweep_ends_as_an_uninterrupted_run(train: Train, tmp_path: Path) -> None:
    overrides = [*TINY, "env=hover", "max_iterations=40", "save_interval=5"]
    folder = tmp_path / "sweep"
    command = [sys.executable, "train.py", "-m", *overrides, "seed=choice(7)", f"hydra.sweep.dir={folder}"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = folder / "0"
    try:
        deadline_s = time.monotonic() + 240
        while not ((run / "metrics.jsonl").exists() and len(rows_of(run)) > 12):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        (job,) = psutil.Process(process.pid).children()
        job.kill()
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == ExitCode.FAILED
    assert [job.status for job in jobs.read(folder).jobs] == ["killed"]
    done = train("-m", *overrides, "seed=choice(7)", f"sweep.resume={folder}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert train(*overrides, "seed=7", f"hydra.run.dir={tmp_path / 'alone'}").returncode == 0
    assert [job.status for job in jobs.read(folder).jobs] == ["completed"]
    resumed, alone = learned(run), learned(tmp_path / "alone")
    assert len(resumed) == 40
    assert resumed == alone


def learned(run: Path) -> list[dict[str, float]]:
    """The rows that do not tell the time or the memory."""
    kept = ("iteration", "Loss", "Train", "Policy", "Episode")
    return [{tag: value for tag, value in row.items() if tag.startswith(kept)} for row in rows_of(run)]


def test_the_event_files_of_a_sweep_hold_the_configuration_the_curves_and_the_results_of_every_job(sweep: Path) -> None:
    table = json.loads((sweep / "sweep.json").read_text())["jobs"]
    for row, job in zip(table, jobs.read(sweep).jobs, strict=True):
        run = sweep / job.folder
        board = EventAccumulator(str(run)).Reload()
        config, environment = (
            board.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
            for name in ("config", "environment")
        )
        assert (run / "config.yaml").read_text().strip() in config
        assert "genesis-world" in environment
        results = {name: row[name] for name in hparams.RESULTS if row[name] is not None}
        assert {tag for tag in board.Tags()["scalars"] if tag.startswith("Result/")} == {
            f"Result/{name}" for name in results
        }
        for name, value in results.items():
            assert board.Scalars(f"Result/{name}")[0].value == pytest.approx(value, rel=1e-6)
        if job.status == "completed":
            last = board.Scalars("Train/mean_reward")[-1]
            assert last.step == ITERATIONS - 1
            assert last.value == pytest.approx(rows_of(run)[-1]["Train/mean_reward"], rel=1e-6)


# in a browser


class Page:
    """A browser's window on a dashboard."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser = browser
        self._url = url
        self._wait = WebDriverWait(browser, timeout=30, ignored_exceptions=[StaleElementReferenceException])

    def open(self, view: str) -> None:
        self.browser.get("about:blank")
        self.browser.get(self._url + view)

    def find(self, selector: str) -> list[Any]:
        return self.browser.execute_script(EVERYWHERE, selector)

    def texts(self, selector: str) -> list[str]:
        """What is to be read in the elements of `selector`, as far as they are visible."""
        return [text for element in self.find(selector) if (text := element.text)]

    def look(self, what: Callable[[], Any], until: Callable[[Any], bool]) -> Any:
        """What there is to see, as soon as it is as it should be, or else at the last."""
        seen = None

        def is_there(_: webdriver.Chrome) -> bool:
            nonlocal seen
            seen = what()
            return until(seen)

        with suppress(TimeoutException):
            self._wait.until(is_there)
        return seen

    def check(self, what: Callable[[], Any], expected: Any) -> None:
        assert self.look(what, lambda seen: seen == expected) == expected

    def click(self, selector: str, text: str) -> None:
        self._wait.until(lambda _: text in self.texts(selector))
        next(element for element in self.find(selector) if element.text == text).click()


@pytest.fixture(scope="module")
def page(
    sweep: Path, dashboard: Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]
) -> Iterator[Page]:
    with dashboard(str(sweep), "--port", "0") as (_, url), open_chromium(1600, 3000) as browser:
        yield Page(browser, url)


def names(sweep: Path) -> list[str]:
    return [job.folder for job in jobs.read(sweep).jobs]


@in_a_browser
def test_time_series_shows_every_run_and_groups_the_tags(page: Page, sweep: Path) -> None:
    page.open("#timeseries")
    page.check(lambda: sorted(page.texts("runs-data-table tb-data-table-content-row")), names(sweep))
    groups = ["Episode", "Loss", "Memory", "Perf", "Policy", "Result", "Train"]
    page.check(lambda: page.texts("metrics-card-groups .group-title"), groups)


@in_a_browser
def test_a_curve_ends_where_the_run_ended(page: Page, sweep: Path) -> None:
    page.open("?tagFilter=mean_reward#timeseries")
    page.check(lambda: [title.replace("\n", "") for title in page.texts("scalar-card .tag")], ["Train/mean_reward"])

    def ends() -> dict[str, list[str]]:
        """Run -> value and step of its last point, as the table under the curve has them."""
        rows = [row.replace(MINUS, "-").split("\n") for row in page.texts("scalar-card tb-data-table-content-row")]
        return {name: values[1:3] for name, *values in rows}

    first, _, third = names(sweep)
    expected = {}
    for name in (first, third):
        reward = rows_of(sweep / name)[-1]["Train/mean_reward"]
        expected[name] = [f"{reward:.4f}".rstrip("0"), str(ITERATIONS - 1)]
    page.check(ends, expected)


@in_a_browser
def test_custom_scalars_are_grouped_as_the_layout_says_and_drawn_for_both_runs(page: Page) -> None:
    page.open("#custom_scalars")
    page.check(
        lambda: [text.split("\n")[0] for text in page.texts("tf-category-paginated-view")],
        ["Reward", "Reward terms", "Losses", "Memory", "Speed"],
    )

    def charts() -> dict[str, str]:
        """Title -> how many curves the chart says it drew."""
        lines = [text.split("\n") for text in page.texts("tf-custom-scalar-multi-line-chart-card")]
        return {title: last for title, *_, last in lines}

    host_curves = 4 if calibration.of_another_cpu() else 2  # predicted beside measured, for these versions
    page.check(
        charts,
        {
            "mean reward": "Matches (2)",
            "episode length": "Matches (2)",
            **dict.fromkeys(["target", "smooth", "yaw", "angular", "crash"], "Matches (2)"),
            **dict.fromkeys(
                ["value loss", "surrogate loss", "entropy", "learning rate", "action deviation"], "Matches (2)"
            ),
            **dict.fromkeys([f"{name}_peak (MiB)" for name in ("rollout", "update", "allocated")], "Matches (4)"),
            "resident (MiB)": "Matches (2)",
            **dict.fromkeys(["host_rss (MiB)", "host_peak_rss (MiB)"], f"Matches ({host_curves})"),
            **dict.fromkeys(["steps per second", "collection time (s)", "learning time (s)"], "Matches (2)"),
        },
    )


@in_a_browser
def test_hparams_has_a_row_for_every_job_with_the_numbers_of_the_report(page: Page, sweep: Path) -> None:
    page.open("#hparams")
    page.click("paper-tab", "TABLE VIEW")

    def table() -> list[list[str]]:
        return [row for grid in page.find("vaadin-grid") for row in page.browser.execute_script(TABLE, grid)]

    metrics = hparams.RESULTS[: hparams.SHOWN]
    head = ["Trial ID", "Show Metrics", "algorithm.learning_rate", *metrics]
    rows = json.loads((sweep / "sweep.json").read_text())["jobs"]
    expected = [
        [name, "", shown(row["algorithm.learning_rate"]), *(shown(row[metric]) for metric in metrics), ""]
        for name, row in zip(names(sweep), rows, strict=True)
    ]
    page.check(lambda: sorted(table()), sorted([head, *expected]))


def shown(value: float | None) -> str:
    """A number as TensorBoard's table has it: JavaScript's toPrecision(5), of what an event file keeps of it."""
    return "" if value is None else re.sub(r"e([+-])0", r"e\1", f"{value:#.5g}")


@in_a_browser
def test_parallel_coordinates_have_an_axis_for_every_column_and_a_line_for_every_job_with_a_reward(page: Page) -> None:
    page.open("#hparams")
    page.click("paper-tab", "PARALLEL COORDINATES VIEW")
    page.check(lambda: page.texts(".axis-title"), ["algorithm.learning_rate", *hparams.RESULTS[: hparams.SHOWN]])
    page.check(lambda: len(page.find(".foreground path")), 2)


@in_a_browser
def test_text_shows_every_configuration_and_environment(page: Page, sweep: Path) -> None:
    page.open("#text")
    seen = page.look(lambda: page.texts("tf-markdown-view"), lambda texts: len(texts) == 2 * len(names(sweep)))
    for name in names(sweep):
        assert (sweep / name / "config.yaml").read_text().strip() in seen
    assert sum("genesis-world 1.4.5" in text for text in seen) == len(names(sweep))
