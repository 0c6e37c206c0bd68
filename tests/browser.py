"""Pages in a real browser, Debian's Chromium: what they say on the console, what they ask the network for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["MISSING", "NARROW", "WIDE", "Opened", "browser", "opened", "violations"]

# In pixels: a laptop's window and a phone's.
WIDE, NARROW = 1280, 390

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A sandbox needs rights that root in a container lacks; the rest keeps the browser off the network.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

MISSING = (
    "no Chromium on the PATH (Debian: apt-get install chromium)"
    if _CHROMIUM is None
    else "Playwright is not installed (pip install -e '.[dev]')"
    if find_spec("playwright") is None
    else None
)
"""Why no page can be opened here, if none can."""


class Opened:
    """A page, and what it did that a page must not do."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(address)

    def read(self) -> None:
        """Bring every part of the page into the window once: what comes near is drawn then."""
        self.page.evaluate(
            """async () => {
              for (let y = 0; y < document.body.scrollHeight; y += innerHeight) {
                scrollTo(0, y);
                await new Promise((done) => setTimeout(done, 60));
              }
              scrollTo(0, 0);
            }"""
        )

    @property
    def left(self) -> list[str]:
        """Requests for anything but the page itself and what it carries."""
        own = self.page.url.partition("#")[0]
        return [url for url in self.requests if url.partition("#")[0] != own and not url.startswith("data:")]

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=_CHROMIUM, args=list(_FLAGS))
        yield started
        started.close()


@contextmanager
def opened(
    browser: Browser, file: Path, *, fragment: str = "", width: int = WIDE, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Opened]:
    """A file as a page in a window of its own."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    yield Opened(context.new_page(), file.absolute().as_uri() + (f"#{fragment}" if fragment else ""))
    context.close()


def violations(page: Page) -> list[str]:
    """What axe finds that keeps people from using the page, with the elements at fault."""
    from axe_playwright_python.sync_playwright import Axe

    found: Any = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {rule['help']}: {[node['html'][:160] for node in rule['nodes']]}" for rule in found]
