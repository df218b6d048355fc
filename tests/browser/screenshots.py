"""The pictures of the documents: `python -m tests.browser.screenshots [FOLDER]` takes them from a demo of its own."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from broker.demo import OPERATOR
from tests import chromium
from tests.browser.demo import RunningDemo, connect_both, running_demo

PICTURES = Path(__file__).parents[2] / "docs/pictures"
SIZE: ViewportSize = {"width": 1120, "height": 760}


def take(demo: RunningDemo, browser: Browser, folder: Path) -> None:
    """Walk through a demo nobody has used, and leave one picture of each page that the documents show."""
    folder.mkdir(parents=True, exist_ok=True)
    context = browser.new_context(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{demo.url}/demo/")
    page.get_by_role("button", name="Connect accounts").click()
    expect(page.get_by_role("heading", name="Connect your accounts")).to_be_visible()
    _picture(page, folder, "connect")
    connect_both(demo, page)
    expect(page.locator(".outcome")).to_contain_text("Everything is set up.")
    _picture(page, folder, "done")
    page.get_by_role("link", name="See your accounts").click()
    expect(page.get_by_role("heading", name="Your connected accounts")).to_be_visible()
    _picture(page, folder, "accounts")
    _console(demo, page, folder)
    context.close()


def _console(demo: RunningDemo, page: Page, folder: Path) -> None:
    page.goto(f"{demo.url}/ops/connections")
    page.get_by_label("E-mail").fill(OPERATOR)
    page.get_by_label("Password", exact=True).fill(demo.operator_password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Connections")).to_be_visible()
    _picture(page, folder, "console")
    page.goto(f"{demo.url}/ops/")
    _picture(page, folder, "overview")
    page.go_back()
    page.get_by_role("link", name="Northwind Coffee").click()
    _picture(page, folder, "console-connection")


def _picture(page: Page, folder: Path, name: str) -> None:
    page.mouse.move(0, 0)
    page.screenshot(path=folder / f"{name}.png", animations="disabled")


def main(arguments: list[str]) -> None:
    """Start a demo, take the pictures and say where they are."""
    folder = Path(arguments[0]) if arguments else PICTURES
    with tempfile.TemporaryDirectory() as scratch, running_demo(Path(scratch)) as demo, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=["--no-sandbox"])
        take(demo, browser, folder)
        browser.close()
    print(f"Pictures: {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
