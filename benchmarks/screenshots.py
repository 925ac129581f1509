"""Takes the docs' pictures of TensorBoard from a finished sweep, in headless Chromium:

python benchmarks/screenshots.py SWEEP [FOLDER]     # FOLDER: where they go; docs/images unless given

A page shows SWEEP as it was given: better relative.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.support.wait import WebDriverWait

from ppo_lab.cli.dashboard import serve

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

EVERYWHERE = """
const found = [];
const search = root => {
  found.push(...root.querySelectorAll(arguments[0]));
  root.querySelectorAll('*').forEach(element => element.shadowRoot && search(element.shadowRoot));
};
search(document);
return found;
"""
"""The elements of a CSS selector in the page and in all shadow roots, in which TensorBoard's older pages live."""

IMAGES = Path(__file__).resolve().parent.parent / "docs/images"
WIDTH, WIDTH_PX = 1750, 1400
"""Of the window; of the pictures."""
COLOURS = 128
SETTINGS = {"timeSeriesSettingsPaneOpened": False, "stepSelectorEnabled": False, "sideBarWidthInPercent": 24}
"""What TensorBoard keeps for a user: more room for the curves."""
PINNED = (
    "Train/mean_reward Train/mean_episode_length Perf/total_fps Loss/value Memory/update_peak_mib Memory/host_rss_mib"
).split()


def open_chromium(width: int, height: int, scale: float = 1.0) -> webdriver.Chrome:
    """A window of that size in CSS pixels, of which a picture takes `scale` pixels each."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")  # Chromium has none for root
    options.add_argument("--disable-dev-shm-usage")  # 64 MiB in a container
    options.add_argument("--hide-scrollbars")
    options.add_argument(f"--window-size={width},{height}")
    options.add_argument(f"--force-device-scale-factor={scale}")
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


class Camera:
    """A window on a dashboard, and where its pictures go."""

    def __init__(self, browser: webdriver.Chrome, images: Path) -> None:
        self._browser = browser
        self._images = images
        self._wait = WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException])

    def open(self, url: str, height: int) -> None:
        self._browser.set_window_size(WIDTH, height)
        self._browser.get(url)
        self._browser.execute_script("localStorage.setItem('_tb_global_settings', arguments[0])", json.dumps(SETTINGS))
        self._browser.refresh()

    def click(self, selector: str, text: str) -> None:
        """Clicks the first element of `selector` that reads `text`, once it is there."""
        self._wait.until(lambda _: self._find(selector, text))[0].click()

    def take(self, name: str, selector: str) -> None:
        """Takes the window once `selector` is there and nothing moves any more."""
        self._wait.until(lambda _: self._find(selector))
        picture, before = self._browser.get_screenshot_as_png(), b""
        while picture != before:
            time.sleep(1)
            picture, before = self._browser.get_screenshot_as_png(), picture
        few_colours = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS)
        few_colours.save(self._images / f"tensorboard_{name}.png", optimize=True)

    def _find(self, selector: str, text: str = "") -> list[Any]:
        found = self._browser.execute_script(EVERYWHERE, selector)
        return [element for element in found if element.is_displayed() and text in element.text]


def main(sweep: Path, images: Path) -> None:
    url = serve(sweep, port=0)
    with open_chromium(WIDTH, 1000, scale=WIDTH_PX / WIDTH) as browser:
        camera = Camera(browser, images)
        cards = json.dumps([{"plugin": "scalars", "tag": tag} for tag in PINNED])
        query = urlencode({"pinnedCards": cards, "runColorGroup": r"regex:num_envs=(\d+)"})
        camera.open(f"{url}?{query}#timeseries", 1100)
        camera.take("timeseries", "line-chart svg")
        camera.open(f"{url}#custom_scalars", 1100)
        camera.take("custom_scalars", "vz-line-chart2")
        camera.open(f"{url}#hparams", 1100)
        camera.take("hparams", "vaadin-grid")
        camera.open(f"{url}#hparams", 960)
        camera.click("paper-tab", "PARALLEL")
        camera.take("parallel_coordinates", ".foreground path")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else IMAGES)
