"""TensorBoard as a person meets it: a real browser on the dashboard of a sweep."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks.screenshots import CHROMIUM, DRIVER, EVERYWHERE, open_chromium
from ppo_lab.telemetry.hparams import write_hparams
from ppo_lab.telemetry.metrics import MetricsWriter

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver; apt-get install chromium chromium-driver"
)

TABLE = """
return [...arguments[0].shadowRoot.querySelectorAll('tr')].filter(row => row.checkVisibility()).map(row =>
  [...row.children].map(cell => cell.querySelector('slot').assignedElements().map(e => e.innerText.trim()).join('')));
"""
"""The texts of a vaadin-grid, row by row; their order in the document is not the one that is seen."""

RUNS = {
    "algorithm.num_mini_batches=2,num_envs=64": (2, 64, 2.5),
    "algorithm.num_mini_batches=2,num_envs=128": (2, 128, None),
    "algorithm.num_mini_batches=4,num_envs=64": (4, 64, 7.0),
}
"""Run -> mini-batches, envs, final reward. The one without an episode that ended has none."""
ITERATIONS = 10


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a sweep leaves it, less what the dashboard does not read."""
    folder = tmp_path_factory.mktemp("sweep")
    for name, (num_mini_batches, num_envs, final_reward) in RUNS.items():
        run = folder / name
        run.mkdir()
        memory = {f"Memory/{row}_mib": 40.0 for row in ("update_peak", "predicted_update_peak", "host_rss")}
        metrics = MetricsWriter(run)
        config_yaml = f"num_envs: {num_envs}\nalgorithm:\n  num_mini_batches: {num_mini_batches}"
        metrics.describe(config_yaml, {"torch": "2.13.0", "device": "cpu"}, memory)
        for iteration in range(ITERATIONS):
            scalars = memory | {
                **dict.fromkeys(["Loss/value", "Loss/surrogate", "Loss/entropy", "Loss/learning_rate"], 0.5),
                **dict.fromkeys(["Perf/collection_time", "Perf/learning_time", "Policy/mean_std"], 0.25),
                "Perf/total_fps": 1000.0,
            }
            if final_reward is not None:
                reward = final_reward * (iteration + 1) / ITERATIONS
                scalars |= dict.fromkeys(
                    ["Train/mean_reward", "Train/mean_episode_length", "Episode/rew_alive"], reward
                )
            metrics.write(iteration, scalars)
        metrics.close()
        hparams = {"algorithm.num_mini_batches": num_mini_batches, "num_envs": num_envs}
        write_hparams(run, hparams, {"final_reward": final_reward, "steps_per_s": 1000.0, "peak_mib": 40.0})
    return folder


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

    def check(self, what: Callable[[], Any], expected: Any) -> None:
        """Waits until `what` gives what is expected, and fails with the difference where it never does."""
        seen = None

        def as_expected(_: webdriver.Chrome) -> bool:
            nonlocal seen
            seen = what()
            return seen == expected

        with suppress(TimeoutException):
            self._wait.until(as_expected)
        assert seen == expected

    def click(self, selector: str, text: str) -> None:
        self._wait.until(lambda _: text in self.texts(selector))
        next(element for element in self.find(selector) if element.text == text).click()


@pytest.fixture(scope="module")
def page(
    sweep: Path, dashboard: Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]
) -> Iterator[Page]:
    with dashboard(str(sweep), "--port", "0") as (_, url), open_chromium(1600, 3000) as browser:
        yield Page(browser, url)


def test_time_series_shows_every_run_and_groups_the_tags(page: Page) -> None:
    page.open("#timeseries")
    page.check(lambda: sorted(page.texts("runs-data-table tb-data-table-content-row")), sorted(RUNS))
    groups = ["Episode", "Loss", "Memory", "Perf", "Policy", "Result", "Train"]
    page.check(lambda: page.texts("metrics-card-groups .group-title"), groups)


def test_a_curve_ends_where_the_run_ended(page: Page) -> None:
    page.open("?tagFilter=mean_reward#timeseries")
    page.check(lambda: [title.replace("\n", "") for title in page.texts("scalar-card .tag")], ["Train/mean_reward"])

    def ends() -> dict[str, list[str]]:
        """Run -> value and step of its last point, as the table under the curve has them."""
        rows = [row.split("\n") for row in page.texts("scalar-card tb-data-table-content-row")]
        return {name: values[1:3] for name, *values in rows}

    page.check(
        ends,
        {
            "algorithm.num_mini_batches=2,num_envs=64": ["2.5", "9"],
            "algorithm.num_mini_batches=4,num_envs=64": ["7", "9"],
        },
    )


def test_custom_scalars_are_grouped_as_the_layout_says(page: Page) -> None:
    page.open("#custom_scalars")
    page.check(
        lambda: [text.split("\n")[0] for text in page.texts("tf-category-paginated-view")],
        ["Reward", "Losses", "Memory", "Speed"],
    )

    def charts() -> dict[str, str]:
        """Title -> how many curves the chart says it drew."""
        lines = [text.split("\n") for text in page.texts("tf-custom-scalar-multi-line-chart-card")]
        return {title: last for title, *_, last in lines}

    page.check(
        charts,
        {
            "mean reward": "Matches (2)",
            "episode length": "Matches (2)",
            "reward terms": "Matches (2)",
            "value and surrogate loss": "Matches (6)",
            "entropy": "Matches (3)",
            "learning rate": "Matches (3)",
            "action deviation": "Matches (3)",
            "tensors: peaks, and what stays (MiB)": "Matches (6)",
            "host (MiB)": "Matches (3)",
            "steps per second": "Matches (3)",
            "seconds": "Matches (6)",
        },
    )


def test_hparams_has_a_row_for_every_run_and_a_column_for_every_key(page: Page) -> None:
    page.open("#hparams")
    page.click("paper-tab", "TABLE VIEW")

    def table() -> list[list[str]]:
        return [row for grid in page.find("vaadin-grid") for row in page.browser.execute_script(TABLE, grid)]

    head = [
        "Trial ID",
        "Show Metrics",
        "algorithm.num_mini_batches",
        "num_envs",
        "final_reward",
        "steps_per_s",
        "peak_mib",
    ]
    rows = {
        "algorithm.num_mini_batches=2,num_envs=64": ["2.0000", "64.000", "2.5000", "1000.0", "40.000"],
        "algorithm.num_mini_batches=2,num_envs=128": ["2.0000", "128.00", "", "1000.0", "40.000"],
        "algorithm.num_mini_batches=4,num_envs=64": ["4.0000", "64.000", "7.0000", "1000.0", "40.000"],
    }
    page.check(lambda: sorted(table()), sorted([head, *([name, "", *row, ""] for name, row in rows.items())]))


def test_parallel_coordinates_have_an_axis_for_every_column(page: Page) -> None:
    page.open("#hparams")
    page.click("paper-tab", "PARALLEL COORDINATES VIEW")
    axes = ["algorithm.num_mini_batches", "num_envs", "final_reward", "steps_per_s", "peak_mib"]
    page.check(lambda: page.texts(".axis-title"), axes)
    page.check(lambda: len(page.find(".foreground path")), 2)  # a run without a reward crosses no reward axis


def test_text_shows_every_configuration_and_environment(page: Page) -> None:
    page.open("#text")
    configurations = [f"num_envs: {envs}\nalgorithm:\n  num_mini_batches: {n}" for n, envs, _ in RUNS.values()]
    page.check(
        lambda: sorted(page.texts("tf-markdown-view")),
        sorted([*configurations, *3 * ["torch 2.13.0\ndevice cpu"]]),
    )
