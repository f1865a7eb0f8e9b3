"""The app as a visitor meets it: served by `workbench app`, seen in chromium. For tests and for screenshots."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
IDLE = "[data-testid=stApp][data-test-script-state=notRunning]"
# Opened at a page's own address, Streamlit first asks for its server below that page. It is answered with 404.
_HARMLESS = ("_stcore/health", "_stcore/host-config")


def chromium() -> str | None:
    """The browser, or None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass(frozen=True)
class App:
    """The app while it runs."""

    url: str
    data: Path
    process: subprocess.Popen
    started_s: float

    def server(self) -> psutil.Process:
        """The process that draws the pages."""
        return next(p for p in self.children() if "serve.py" in _command(p))

    def model_process(self) -> psutil.Process:
        """The process that owns the model."""
        return next(p for p in self.children() if "workbench.jobs.worker" in _command(p))

    def has_model_process(self) -> bool:
        """Whether it has been started."""
        return any("workbench.jobs.worker" in _command(p) for p in self.children())

    def children(self) -> list[psutil.Process]:
        """All processes below the command's."""
        return psutil.Process(self.process.pid).children(recursive=True)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


@contextmanager
def serving(data: Path, *options: str) -> Iterator[App]:
    """Runs `workbench app` over a data folder, on a free port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "workbench.cli", "app", "--port", str(port), "--data", str(data), *options]
    started = time.monotonic()
    with (data / "app.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _answers(url):
            assert process.poll() is None, (data / "app.log").read_text()
            assert time.monotonic() - started < 60, "the app did not answer within 60 s"
            time.sleep(0.05)
        yield App(url, data, process, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextmanager
def browsing() -> Iterator[Browser]:
    """A headless chromium; as root it runs without its sandbox, which it could not set up."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A visitor with a browser profile of their own, who notes what goes wrong.

    Attributes:
        page: The page they look at.
        troubles: Errors of scripts and in the console, and requests to other machines.
    """

    def __init__(
        self, browser: Browser, app: App, *, dark: bool = False, width: int = 1440, height: int = 1000
    ) -> None:
        self._context = browser.new_context(
            color_scheme="dark" if dark else "light", viewport={"width": width, "height": height}
        )
        self.page: Page = self._context.new_page()
        self.app, self.troubles = app, []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", self._note_console)
        self.page.on("dialog", lambda dialog: (self.troubles.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("request", self._note_request)

    def _note_console(self, message: Any) -> None:
        if message.type == "error" and not message.location["url"].endswith(_HARMLESS):
            self.troubles.append(f"{message.text} ({message.location['url']})")

    def _note_request(self, request: Any) -> None:
        if not request.url.startswith((self.app.url, "data:", "blob:", self.app.url.replace("http", "ws"))):
            self.troubles.append(f"request to {request.url}")

    def open(self, path: str) -> None:
        """Opens an address of the app, and waits until it is drawn."""
        self.page.goto(self.app.url + path)
        self.settle()

    def go(self, name: str) -> None:
        """Opens a page through the sidebar."""
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        self.settle()

    def settle(self) -> None:
        """Waits until nothing runs."""
        for pause_ms in (0, 300):  # what a click sets off begins a moment later
            self.page.wait_for_timeout(pause_ms)
            try:
                self.page.wait_for_selector(IDLE, timeout=60_000)
            except TimeoutError as error:
                state = self.page.get_by_test_id("stApp").evaluate_all("apps => apps.map(app => ({...app.dataset}))")
                raise AssertionError(f"{self.address()} does not come to rest: {state}; {self.troubles}") from error

    def chart(self, key: str) -> Any:
        """A figure that is drawn."""
        self.page.wait_for_selector(f".st-key-{key} .main-svg", timeout=60_000)
        return self.page.locator(f".st-key-{key}")

    def click_mark(self, key: str, across: float, down: float) -> None:
        """Clicks into a figure's plot, at shares of its width and height."""
        plot = self.chart(key).locator(".nsewdrag").first
        plot.scroll_into_view_if_needed()
        self._click(plot, across, down)

    def click_token(self, key: str, index: int) -> None:
        """Clicks a token of a strip."""
        token = self.chart(key).locator(".bars .point").nth(index)
        token.scroll_into_view_if_needed()
        self._click(token, 0.5, 0.5)

    def _click(self, place: Any, across: float, down: float) -> None:
        box, before = place.bounding_box(), None
        for _ in range(40):  # until what is above it has stopped growing
            if box == before:
                break
            self.page.wait_for_timeout(150)
            place.scroll_into_view_if_needed()
            box, before = place.bounding_box(), box
        self.page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])
        self.settle()

    def save(self, key: str, kind: str) -> bytes:
        """Downloads a figure or table."""
        button = self.page.locator(f".st-key-{key}-save button").first
        button.evaluate("e => e.scrollIntoView({block: 'center'})")  # so that what it opens has room on the screen
        button.click()
        with self.page.expect_download() as waiting:  # by the keyboard: a page that still grows moves what is clicked
            self.page.get_by_test_id("stPopoverBody").get_by_role("button", name=kind, exact=True).press("Enter")
        content = Path(waiting.value.path()).read_bytes()
        self.page.keyboard.press("Escape")
        return content

    def choose(self, label: str, option: str) -> None:
        """Chooses in a list by typing."""
        chooser = self.page.get_by_role("combobox", name=label, exact=True)
        chooser.click()
        chooser.fill(option)
        self.page.keyboard.press("Enter")
        self.settle()

    def put_aside(self, key: str) -> None:
        """Adds a figure or table to the export."""
        self.page.locator(f".st-key-{key}-aside button").press("Enter")
        self.settle()
        self.page.locator(f".st-key-{key}-aside").get_by_text("In the export").wait_for(timeout=30_000)

    def download(self, button: str) -> bytes:
        """What a button downloads."""
        with self.page.expect_download(timeout=120_000) as waiting:
            self.page.get_by_role("button", name=button).press("Enter")
        return Path(waiting.value.path()).read_bytes()

    def address(self) -> str:
        """Path and query of the address bar."""
        return str(self.page.evaluate("location.pathname + location.search"))

    def seen(self) -> list[str]:
        """What the page says, and what its figures show as text."""
        main = self.page.get_by_test_id("stMain")
        return [*main.inner_text().split("\n"), *main.locator(".main-svg text").all_text_contents()]

    def heard(self) -> str:
        """All messages on the page."""
        return " ".join(self.page.get_by_test_id("stAlert").all_inner_texts())

    def close(self) -> None:
        """Leaves."""
        self._context.close()
