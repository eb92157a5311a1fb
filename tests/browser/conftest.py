"""Pages in Debian's Chromium with the network off; what a page complains about is a failure."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, sync_playwright

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OUTSIDE = re.compile(r"^(?!file:|data:|blob:|about:|(http|ws)://localhost:)")
DESKTOP, PHONE = 1280, 390


@dataclass
class Visit:
    """An open page, and what went wrong on it: errors, dialogs, requests that leave the machine."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Take down every fault from now on."""
        page = self.page
        page.on("console", lambda one: self._fault(one.text, one.type == "error"))
        page.on("pageerror", lambda one: self._fault(str(one)))
        page.on("dialog", self._dismiss)
        page.on("request", lambda one: self._fault(one.url, bool(OUTSIDE.match(one.url))))

    def _fault(self, text: str, wrong: bool = True) -> None:
        if wrong:
            self.faults.append(text)

    def _dismiss(self, dialog: Dialog) -> None:
        self.faults.append(dialog.message)
        dialog.dismiss()

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; not for the whole session, as Playwright keeps an event loop in this thread."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """``visit(address, width)``: a page that may not reach anything but this machine.

    When a module is done, none of its pages may have met a fault.
    """
    visits: list[Visit] = []

    def go(address: str | Path, width: int = DESKTOP) -> Visit:
        local = isinstance(address, Path)
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=local, reduced_motion="reduce"
        )
        context.route(OUTSIDE, lambda route: route.abort())
        context.set_default_navigation_timeout(120_000)  # milliseconds; a busy machine is slow
        visits.append(Visit(context.new_page()))
        visits[-1].watch()
        visits[-1].page.goto(address.as_uri() if isinstance(address, Path) else address)
        return visits[-1]

    yield go
    for one in visits:
        one.page.context.close()
    assert [one.faults for one in visits] == [[] for _ in visits]
