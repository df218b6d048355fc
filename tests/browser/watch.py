"""What a browser noticed while somebody used it: messages, errors, failed requests, and who was asked for what."""

from __future__ import annotations

from urllib.parse import urlsplit

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Request,
    Response,
    WebError,
    expect,
)

PATIENCE_MS = 60_000
"""How long a page may take to show what a worker does; other processes share the machine."""

expect.set_options(timeout=PATIENCE_MS)


class Watch:
    """Everything a browser context noticed, from its first page on."""

    def __init__(self, context: BrowserContext) -> None:
        context.set_default_timeout(PATIENCE_MS)
        self.origins: set[str] = set()
        self.status: int | None = None
        self._page: Response | None = None
        self._said: list[str] = []
        context.on("console", self._on_console)
        context.on("weberror", self._on_error)
        context.on("request", self._on_request)
        context.on("requestfailed", self._on_failure)
        context.on("response", self._on_response)

    def said(self) -> list[str]:
        """Return console messages, script errors and failed requests."""
        return list(self._said)

    def markup(self) -> str:
        """Return the last page as it was sent, before any script."""
        assert self._page is not None
        return self._page.text()

    def _on_console(self, message: ConsoleMessage) -> None:
        page = message.page
        # Chromium reports the status of an error page itself as if something on the page were missing.
        own = page is not None and message.location["url"] == page.url
        if not (own and message.text.startswith("Failed to load resource: the server responded with a status of ")):
            self._said.append(f"{message.type}: {message.text}")

    def _on_error(self, error: WebError) -> None:
        self._said.append(f"error: {error.error}")

    def _on_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "data":
            self.origins.add(f"{parts.scheme}://{parts.netloc}")

    def _on_failure(self, request: Request) -> None:
        # A page that is left while it asks whether something changed takes its question back.
        if request.failure != "net::ERR_ABORTED":
            self._said.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _on_response(self, response: Response) -> None:
        if response.request.is_navigation_request() and _is_whole_page(response):
            self.status = response.status
            self._page = response


def _is_whole_page(response: Response) -> bool:
    try:
        return response.frame.parent_frame is None
    except Error:
        # A popup asks for its first page before it has a frame.
        return True


class Clicks:
    """Somebody who uses nothing but the mouse; counts how often."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.count = 0

    def button(self, name: str) -> None:
        """Click the button with exactly this name."""
        self._click(self.page.get_by_role("button", name=name, exact=True))

    def link(self, name: str) -> None:
        """Click the link with exactly this name."""
        self._click(self.page.get_by_role("link", name=name, exact=True))

    def radio(self, name: str) -> None:
        """Pick the choice whose text begins so."""
        self._click(self.page.locator("label.choice").filter(has_text=name))

    def _click(self, target: Locator) -> None:
        target.click()
        self.count += 1
