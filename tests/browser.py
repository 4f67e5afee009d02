"""Chromium, driven by playwright: the system's, named by ``PLAYWRIGHT_CHROMIUM`` or found on the path."""

import os
import shutil
from contextlib import contextmanager


def chromium():
    """Path of the browser; ``None`` without one."""
    return os.environ.get("PLAYWRIGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def launched():
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox cannot be set up as root, or in most containers; the pages are ours.
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def opened(context, address, route="/"):
    """A page at a route, once it is drawn; what it complains of is in ``page.complaints``."""
    page = context.new_page()
    page.complaints, page.asked = [], []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(f"{address}#{route}")
    page.wait_for_function("route => document.documentElement.dataset.drawn === route", arg=f"#{route}")
    return page


def go(page, route):
    """Go to another route of the same page."""
    page.evaluate("route => { location.hash = route; }", route)
    page.wait_for_function("route => document.documentElement.dataset.drawn === route", arg=f"#{route}")
