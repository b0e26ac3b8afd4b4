"""The page in a real browser: restored, looked at, downloaded, cancelled, refused.

Run by `make test-page`. PAGE_SCREENSHOTS names a folder to keep pictures of the page in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from pipeline.compose import load_config
from tests.conftest import TINY_RUN, photograph
from tests.evaluating import save_model_folder

pytestmark = pytest.mark.page
WAIT = 60_000
"""Milliseconds for what a browser waits for."""
HOME = {"127.0.0.1", "localhost", ""}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a small untrained model, in a process of its own; its limits are narrow."""
    folder = tmp_path_factory.mktemp("page")
    model = save_model_folder(load_config([*TINY_RUN, f"run_dir={folder}"]), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--megabytes", "1", "--megapixels", "2", "--device", "cpu"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.app", "--model", model, *options],
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    deadline = time.monotonic() + 120
    while "the page is at" not in (folder / "log").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "Traceback" not in (folder / "log").read_text(), (folder / "log").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "there is no Chromium; `make test-page` installs it"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page on a desktop; nothing may be asked of any other machine."""
    yield from opened(browser, address, 1280, 900)


@pytest.fixture
def phone(browser: Browser, address: str) -> Iterator[Page]:
    yield from opened(browser, address, 390, 844)


def opened(browser: Browser, address: str, width: int, height: int) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(urlparse(request.url).hostname or ""))
    page.goto(address)
    expect(page.locator("#restore")).to_be_visible(timeout=WAIT)
    yield page
    page.close()
    assert asked <= HOME, asked


def keep(page: Page, name: str) -> None:
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def upload(page: Page, path: Path) -> None:
    page.locator("#photo input[type=file]").set_input_files(path)


def save(path: Path, height: int, width: int) -> Path:
    Image.fromarray(photograph(height, width)).save(path)
    return path


def test_photograph_is_restored_compared_and_downloaded(page: Page, tmp_path: Path) -> None:
    upload(page, save(tmp_path / "my photo ü.png", 200, 300))
    expect(page.locator("#slider img").first).to_be_visible(timeout=WAIT)
    keep(page, "chosen")
    page.locator("#restore").click()
    expect(page.locator("#summary")).to_contain_text("2 network calls", timeout=WAIT)
    expect(page.locator("#found")).to_contain_text("%")
    slider = page.locator("#slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box is not None
    before = slider.screenshot()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] - 150, middle[1], steps=5)
    page.mouse.up()
    assert slider.screenshot() != before
    keep(page, "restored")
    with page.expect_download() as download:
        page.locator("#download").click()
    assert re.fullmatch(r"my.photo.*-restored\.png", download.value.suggested_filename)
    download.value.save_as(tmp_path / "restored.png")
    with Image.open(tmp_path / "restored.png") as image:
        assert image.size == (300, 200)
        assert not np.array_equal(np.asarray(image), photograph(200, 300))


def test_example_is_one_click_away(page: Page) -> None:
    page.locator("#examples button:has(img)").first.click()
    expect(page.locator("#slider img").first).to_be_visible(timeout=WAIT)
    page.locator("#restore").click()
    expect(page.locator("#summary")).to_contain_text("network calls", timeout=WAIT)


def test_degradation_is_chosen_or_written(page: Page, tmp_path: Path) -> None:
    upload(page, save(tmp_path / "a.png", 64, 64))
    wish = page.locator("#degradation input")
    wish.fill("noisy:0.5, hazy")
    wish.press("Enter")
    page.locator("#restore").click()
    expect(page.locator("#summary")).to_contain_text("network calls", timeout=WAIT)
    wish.fill("nosy")
    wish.press("Enter")
    page.locator("#restore").click()
    expect(page.get_by_text("if 'noisy' is meant")).to_be_visible(timeout=WAIT)


def test_nothing_chosen_is_said(page: Page) -> None:
    page.locator("#restore").click()
    expect(page.get_by_text("Choose a photograph first")).to_be_visible(timeout=WAIT)
    keep(page, "error")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("text.png", lambda path: path.write_text("hello"), "not an image (5 bytes)"),
        ("cut.jpg", lambda path: cut(path), "damaged image"),
        ("wide.png", lambda path: save(path, 10, 300_000), "this page accepts 2"),
    ],
)
def test_bad_files_are_said(
    page: Page, tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    upload(page, tmp_path / name)
    expect(page.get_by_text(message)).to_be_visible(timeout=WAIT)
    assert str(tmp_path) not in page.content()


def cut(path: Path) -> None:
    save(path, 80, 80)
    path.write_bytes(path.read_bytes()[:500])


def test_too_large_a_file_is_refused(page: Page, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(200_000_000))
    upload(page, tmp_path / "large.png")
    expect(page.get_by_text(re.compile("exceed", re.IGNORECASE)).first).to_be_visible(timeout=WAIT)


def test_work_is_cancelled(page: Page, tmp_path: Path) -> None:
    upload(page, save(tmp_path / "a.png", 512, 512))
    expect(page.locator("#slider img").first).to_be_visible(timeout=WAIT)
    page.get_by_text("More", exact=True).click()
    set_steps(page, "100")
    page.locator("#restore").click()
    expect(page.get_by_text(re.compile(r"\d+/100"))).to_be_visible(timeout=WAIT)
    keep(page, "working")
    page.locator("#cancel").click()
    expect(page.locator("#summary")).to_contain_text("Cancelled.", timeout=WAIT)
    set_steps(page, "1")
    page.locator("#restore").click()  # the worker is free again
    expect(page.locator("#summary")).to_contain_text("1 network call,", timeout=WAIT)


def set_steps(page: Page, count: str) -> None:
    """Until it stays: what has just been unfolded goes back to its first value once more."""
    number, slider = (
        page.get_by_label(f"{kind} for Steps") for kind in ("number input", "range slider")
    )
    deadline = time.monotonic() + WAIT / 1000
    stays = False
    while not stays:
        assert time.monotonic() < deadline
        number.fill(count)
        number.press("Tab")
        page.wait_for_timeout(1000)
        stays = {number.input_value(), slider.input_value()} == {count}


def test_keyboard_reaches_everything(page: Page, tmp_path: Path) -> None:
    upload(page, save(tmp_path / "a.png", 64, 64))
    expect(page.locator("#slider img").first).to_be_visible(timeout=WAIT)
    page.locator("body").click(position={"x": 2, "y": 2})
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        where = page.evaluate("document.activeElement.closest('[id]')?.id ?? ''")
        reached.add(where)
        if where == "restore" and "pressed" not in reached:
            page.keyboard.press("Enter")
            reached.add("pressed")
    expect(page.locator("#summary")).to_contain_text("network calls", timeout=WAIT)
    ids = page.evaluate(
        "[...document.querySelectorAll('#degradation input, #restore, #cancel')]"
        ".map(e => e.tabIndex)"
    )
    assert len(ids) == 3 and min(ids) >= 0 and {"restore", "cancel"} <= reached


def test_phone_shows_all_of_it(phone: Page, tmp_path: Path) -> None:
    upload(phone, save(tmp_path / "a.png", 200, 300))
    phone.locator("#restore").click()
    expect(phone.locator("#summary")).to_contain_text("network calls", timeout=WAIT)
    keep(phone, "phone")
    wide = phone.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390
    box = phone.locator("#slider").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390


REMEMBER = """() => {
  window.shown = "";
  const look = () => { window.shown = (window.shown + document.body.innerText).slice(-200000); };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true});
}"""
"""Keeps what a page has shown: messages disappear after a while."""


def test_ten_at_once_are_served_or_told_to_wait(
    browser: Browser, address: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.png", 128, 128)
    pages = [browser.new_page() for _ in range(10)]
    for page in pages:
        page.goto(address)
        upload(page, path)
        expect(page.locator("#slider img").first).to_be_visible(timeout=WAIT)
    for page in pages:
        page.evaluate(REMEMBER)
        page.locator("#restore").click()
    ends = ["network calls", "queue is full"]
    seen: dict[int, str] = {}
    deadline = time.monotonic() + 2 * WAIT / 1000
    while len(seen) < len(pages) and time.monotonic() < deadline:
        for i, page in enumerate(pages):
            text = str(page.evaluate("window.shown")).lower()
            seen.update((i, end) for end in ends if end in text)
    assert len(seen) == len(pages) and list(seen.values()).count(ends[0]) >= 8, seen
    for page in pages:
        page.close()


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../../../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "{here}/README.md"],
)
def test_files_of_the_machine_are_not_served(address: str, path: str) -> None:
    named = path.format(here=Path(__file__).parents[2])
    for route in ("file=", "file/"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{address}/gradio_api/{route}{named}")
        assert raised.value.code in {403, 404}


def test_name_of_an_upload_leads_nowhere(address: str, tmp_path: Path) -> None:
    boundary = "cut"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="files"; '
        f'filename="../../../../tmp/{tmp_path.name}-escaped.png"\r\n\r\nx\r\n--{boundary}--\r\n'
    )
    request = urllib.request.Request(
        f"{address}/gradio_api/upload",
        body.encode(),
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request) as answer:
        (where,) = json.load(answer)
    assert "gradio" in where and ".." not in where
    assert not Path(f"/tmp/{tmp_path.name}-escaped.png").exists()
