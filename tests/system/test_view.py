"""The viewer: real clicks and keys in headless Chromium, on a page that a process of its own serves."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from benchmarks.screenshots import CHROMIUM, DRIVER, open_chromium
from ppo_lab.config import ExperimentConfig
from ppo_lab.contracts import Looks
from ppo_lab.envs import make_env
from ppo_lab.learning.checkpoint import load, save
from tests.conftest import serving
from tests.paths import REPOSITORY

OLD_RUN = REPOSITORY / "tests/fixtures/runs_before_generators/go2"


class Viewer(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    checkpoints: Path


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    """A run of Go2 with one checkpoint, 2, served by a process that starts as a user starts it."""
    run = tmp_path_factory.mktemp("runs") / "a run"
    shutil.copytree(OLD_RUN, run)
    asked = ["checkpoint=last", "port=18080", "paused=true", "shadows=false"]
    command = [sys.executable, "-m", "ppo_lab", "view", str(run), *asked]
    with serving(command) as (process, said):
        (port,) = re.findall(r"^http://localhost:(\d+)", said)
        assert f"ssh -L {port}:localhost:{port} " in said
        yield Viewer(process, f"http://localhost:{port}/", run / "checkpoints")


class Window:
    """The page in a browser, as a user works with it."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser
        self._wait = WebDriverWait(browser, 120)

    def wait_for(self, pattern: str) -> str:
        """The group of `pattern`, or else all of it, once the page's text has it."""
        text = "return document.body?.innerText ?? ''"  # there is no body at first
        return self._wait.until(lambda browser: re.findall(pattern, browser.execute_script(text)), pattern)[0]

    def click(self, label: str) -> None:
        self.browser.find_element(By.XPATH, f"//button[normalize-space()='{label}']").click()

    def press(self, keys: str) -> None:
        """After a click into the scene, as keys go to where one clicked last."""
        scene = self.browser.find_element(By.CSS_SELECTOR, "canvas[data-engine]")
        ActionChains(self.browser).move_to_element(scene).click().send_keys(keys).perform()

    def field(self, label: str) -> Any:
        """The input that is seen in the row of `label`."""
        row = f"//label[normalize-space()='{label}']/ancestor::*[contains(@class, 'mantine-Flex-root')][1]"
        return self.browser.find_elements(By.XPATH, f"{row}//input[not(@type='hidden')]")[-1]

    def wait_for_value(self, label: str, value: str) -> None:
        self._wait.until(lambda _: self.field(label).get_attribute("value") == value, f"{label}: {value}")

    def choose(self, label: str, option: str) -> None:
        """Opens a dropdown and clicks one of what it offers, once it does."""
        self.field(label).click()
        self._wait.until(lambda _: self._options(option), option)[0].click()

    def _options(self, text: str) -> list[Any]:
        found = self.browser.find_elements(By.CSS_SELECTOR, "[role=option]")
        return [option for option in found if option.is_displayed() and option.text == text]


@pytest.fixture(scope="module")
def window(viewer: Viewer) -> Iterator[Window]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver; apt-get install chromium chromium-driver")
    with open_chromium(1000, 800) as browser:
        browser.get(viewer.url)
        found = Window(browser)
        found.wait_for("paused")
        yield found


def test_the_page_comes_from_this_machine_and_goes_to_it_alone(viewer: Viewer, window: Window) -> None:
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(viewer.process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]
    loaded = window.browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith((viewer.url, "data:", f"blob:{viewer.url}"))] == []


def test_paused_it_steps_once_a_click_and_then_goes_on(window: Window) -> None:
    before_s = float(window.wait_for(r"paused\n(\d+\.\d\d) s of an episode"))
    window.click("Step")
    window.wait_for(f"paused\n{before_s + 0.02:.2f} s of an episode")
    window.click("Continue")
    window.wait_for(r"\d\.\d\d x real time")
    window.click("Pause")
    assert float(window.wait_for(r"paused\n(\d+\.\d\d) s of an episode")) > before_s + 0.02


def test_a_new_checkpoint_appears_and_is_played_without_a_reset_and_a_damaged_one_is_said(
    viewer: Viewer, window: Window
) -> None:
    window.wait_for("iteration 2, paused")
    before_s = window.wait_for(r"(\d+\.\d\d) s of an episode")
    save(viewer.checkpoints / "model_3.pt", load(viewer.checkpoints / "model_2.pt") | {"iter": 3})
    window.choose("Checkpoint", "3")
    window.wait_for("iteration 3, paused")
    assert window.wait_for(r"(\d+\.\d\d) s of an episode") == before_s
    (viewer.checkpoints / "model_4.pt").write_bytes(b"half a checkpoint")
    window.choose("Checkpoint", "4")
    window.wait_for(r"model_4\.pt is cut short, or was not written by this project")
    window.wait_for_value("Checkpoint", "3")
    window.wait_for("iteration 3, paused")


def test_keys_drive_the_robot_and_not_the_camera(window: Window) -> None:
    window.browser.execute_script("document.addEventListener('keydown', event => window.reached = event.code)")
    window.press("ww")
    window.wait_for_value("lin_vel_x_m_s", "0.7")
    window.press("q")
    window.wait_for_value("ang_vel_rad_s", "0.1")
    assert not window.field("As trained").is_selected()
    assert window.browser.execute_script("return window.reached") is None
    window.press("x")
    window.wait_for_value("lin_vel_x_m_s", "0")
    assert window.browser.execute_script("return window.reached") == "KeyX", "the test hears keys"
    window.field("As trained").click()
    window.wait_for_value("lin_vel_x_m_s", "0.5")


def test_a_reset_begins_an_episode_and_all_terms_of_the_reward_are_shown(window: Window) -> None:
    window.click("Reset")
    window.wait_for(r"paused\n0\.02 s of an episode; the last one ended by reset")
    for term in ("tracking_lin_vel", "tracking_ang_vel", "lin_vel_z", "base_height", "action_rate"):
        window.wait_for(rf"{term}\n[+-]\d")


def test_ctrl_c_ends_it_with_code_0_while_a_browser_looks_on(viewer: Viewer, window: Window) -> None:
    viewer.process.send_signal(signal.SIGINT)
    rest, errors = viewer.process.communicate(timeout=60)
    assert (viewer.process.returncode, rest, errors) == (0, "", "building go2\n")


def test_an_env_on_the_simulator_can_be_drawn_and_pushed(
    simulator: torch.device, experiment: Callable[..., ExperimentConfig]
) -> None:
    env: Any = make_env(experiment("env=hover").env, 2, simulator, seed=1, looks=Looks())
    shapes, (positions, quats) = env.shapes(), env.poses()
    assert [shape[:4] for shape in shapes] == [b"glTF"] * 6, "the base, four propellers, the ground"
    assert (positions.shape, quats.shape) == ((6, 3), (6, 4))
    assert positions[0].tolist() == pytest.approx(env._drone.get_pos()[0].tolist())
    before = env._drone.get_vel().clone()
    env.push((0.3, -0.2, 0.1))
    assert (env._drone.get_vel() - before).tolist() == [pytest.approx([0.3, -0.2, 0.1]), [0.0, 0.0, 0.0]]
