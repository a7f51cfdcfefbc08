"""The page in a real browser: drop, slide, switch, read, save. Needs playwright and a Chromium of the system."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fanet_lightning import FaceDetector
from fanet_lightning.app import serving as app
from tests.app.helpers import PHOTO, settings_of

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing but the page: a browser of its own accord asks its maker for updates and lists.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
]  # fmt: skip
PATIENCE_MS = 60_000


@dataclass
class Seen:
    """What the browser said and where it went."""

    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if executable is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("gradio", reason="the page is an extra: pip install 'fanet-lightning[app]'")
    settings = settings_of("port=null", "max_upload_mb=1", "max_video_seconds=0.2")
    with app.serving(FaceDetector.from_pretrained(), settings) as url:
        yield url


@pytest.fixture(scope="module")
def context(browser: Any) -> Iterator[Any]:
    """One for all tests, so that the page's own files are fetched once."""
    opened = browser.new_context(viewport={"width": 1280, "height": 844}, permissions=["camera"])
    yield opened
    opened.close()


@pytest.fixture
def page(context: Any, address: str) -> Iterator[tuple[Any, Seen]]:
    """The page, opened, and what happens besides; a test fails on any error of the console or request elsewhere."""
    opened, seen = context.new_page(), Seen()
    opened.set_default_timeout(PATIENCE_MS)
    opened.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: seen.errors.append(str(error)))
    local = (address, "data:", "blob:")
    opened.on("request", lambda sent: None if sent.url.startswith(local) else seen.elsewhere.append(sent.url))
    opened.goto(address)
    opened.wait_for_selector("#image-in input[type=file]", state="attached")
    yield opened, seen
    opened.close()
    assert seen.errors == []
    assert seen.elsewhere == []


def count_of(opened: Any, tab: str = "image") -> str:
    return str(opened.locator(f"#{tab}-summary .main dd").inner_text())


def set_threshold(opened: Any, value: float) -> None:
    box = opened.locator("#threshold input[type=number]")
    box.fill(f"{value}")
    box.press("Tab")
    opened.locator("#image-summary .main dt", has_text=f"score {value:.2f} or more").wait_for()


def wait_for_rows(opened: Any, count: int) -> None:
    """The table has a row for each face that is counted, neither more nor less, and its head."""
    opened.locator(f"#image-table [aria-rowcount='{count + 1}']").wait_for()


def check_fits(opened: Any) -> None:
    """Nothing is wider than the window, of a computer or of a phone, and no number than its tile."""
    for width in (390, 1280):
        opened.set_viewport_size({"width": width, "height": 844})
        opened.wait_for_function(
            """() => document.documentElement.scrollWidth <= window.innerWidth
            && [...document.querySelectorAll('.facts dd')].every(cell => cell.scrollWidth <= cell.clientWidth)"""
        )


def test_drop_slide_switch_save(page: tuple[Any, Seen]) -> None:
    opened, _ = page
    opened.set_input_files("#image-in input[type=file]", str(PHOTO))
    opened.wait_for_selector("#image-summary .main")
    assert count_of(opened) == "1 face"
    opened.wait_for_selector("#image-out img")
    wait_for_rows(opened, 1)
    first = opened.locator("#image-out img").get_attribute("src")
    check_fits(opened)
    # The slider, with the keyboard as a person without a mouse would.
    opened.get_by_label("range slider for Threshold").press("End")
    opened.locator("#image-summary .main dt", has_text="score 0.99 or more").wait_for()
    set_threshold(opened, 0.12)  # below it this model has hundreds
    more = int(count_of(opened).split()[0])
    assert more > 1
    wait_for_rows(opened, more)
    assert opened.locator("#image-out img").get_attribute("src") != first
    set_threshold(opened, 0.5)
    assert count_of(opened) == "1 face"
    # Another protocol: the network runs again, and the JSON says with which.
    opened.get_by_label("Protocol").click()
    opened.get_by_role("option", name="vga640").click()
    opened.locator("#image-json button").first.click()
    opened.locator("#image-json", has_text="vga640").wait_for()
    assert count_of(opened) == "1 face"
    check_fits(opened)
    with opened.expect_download() as waiting:
        opened.get_by_role("button", name="Save JSON").first.click()
    assert waiting.value.suggested_filename == "grace_hopper.json"
    content = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert len(content["images"][0]["detections"]) == 1
    before = opened.locator("#image-out img").get_attribute("src")
    opened.get_by_label("blur").check()
    opened.wait_for_function("src => document.querySelector('#image-out img').src !== src", arg=before)
    with opened.expect_download() as waiting:
        opened.get_by_role("button", name="Save image").click()
    assert waiting.value.suggested_filename == "grace_hopper_blur.jpg"
    with Image.open(waiting.value.path()) as image:
        assert image.size == (512, 600)


def test_bad_files_say_so_and_the_page_goes_on(page: tuple[Any, Seen], tmp_path: Path) -> None:
    opened, seen = page
    cut, large = tmp_path / "cut.jpg", tmp_path / "large.png"
    cut.write_bytes(PHOTO.read_bytes()[:20_000])
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(large)
    opened.set_input_files("#image-in input[type=file]", str(cut))
    opened.locator("#image-summary [role=alert]", has_text="the file is cut short").wait_for()
    clear = opened.locator("#image-in")
    clear.get_by_label("Clear").or_(clear.get_by_label("Remove Image")).first.click()
    opened.wait_for_selector("#image-in input[type=file]", state="attached")
    assert seen.errors == []
    opened.set_input_files("#image-in input[type=file]", str(large))
    line = opened.locator("#problem p")
    line.wait_for()
    assert all(words in line.inner_text() for words in ("large.png", "maximum allowed size of 1.0 Mb", "max_upload_mb"))
    assert opened.get_by_test_id("toast-body").locator("visible=true").count() == 0
    seen.errors.clear()  # the browser's own refusal is one
    opened.set_input_files("#image-in input[type=file]", str(PHOTO))
    opened.wait_for_selector("#image-summary .main")
    assert count_of(opened) == "1 face" and not line.is_visible()


def test_the_keyboard_alone(page: tuple[Any, Seen]) -> None:
    opened, _ = page
    reached = []

    def tab_to(name: str) -> None:
        for _ in range(30):
            opened.keyboard.press("Tab")
            focus = opened.evaluate(
                """() => { const item = document.activeElement; return [
                    item.ariaLabel || item.labels?.[0]?.innerText || item.innerText || '',
                    getComputedStyle(item).outlineStyle] }"""
            )
            reached.append(focus)
            if focus[0].strip().startswith(name):
                return
        raise AssertionError(f"{name} is not reached: {reached}")

    tab_to("range slider for Threshold")
    opened.keyboard.press("ArrowLeft")
    tab_to("pixelate")
    opened.keyboard.press("Space")
    tab_to("Several images")
    opened.keyboard.press("Space")
    opened.get_by_label("Click to upload or drop files").wait_for()
    tab_to("Click to upload or drop files")
    opened.set_input_files("#several-in input[type=file]", [str(PHOTO)])
    opened.locator("#several-summary .main dt", has_text="score 0.49 or more").wait_for()
    assert count_of(opened, "several") == "1 face"
    tab_to("Save JSON")
    with opened.expect_download() as waiting:
        opened.keyboard.press("Enter")
    assert waiting.value.suggested_filename == "grace_hopper.json"
    assert [name for name, outline in reached if outline == "none"] == []


def test_every_control_has_a_name_and_the_camera_works(page: tuple[Any, Seen]) -> None:
    """Screen readers say a label; Chromium's own test image has no face."""
    opened, _ = page
    nameless = opened.evaluate(
        """() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')].filter(item =>
            !(item.labels && item.labels.length) && !item.getAttribute('aria-label')
            && !item.getAttribute('aria-labelledby') && !item.title && !item.innerText.trim()
            && item.checkVisibility()).map(item => item.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    opened.get_by_label("Capture from camera").click()
    opened.get_by_role("button", name="Access Webcam").click()
    # Before the camera's first frame there is nothing to capture, and nothing happens.
    opened.wait_for_function("() => [...document.querySelectorAll('video')].some(video => video.videoWidth > 0)")
    opened.get_by_label("capture photo").click()
    opened.wait_for_selector("#image-summary .main")
    assert count_of(opened) == "0 faces"
