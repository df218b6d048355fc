"""Chromium, and worlds to walk through with it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.browser.watch import Watch
from tests.databases import SqliteDatabases
from tests.e2e.world import World

_numbers = itertools.count(1)


@pytest.fixture(scope="package")
def browser(chromium_path: Path) -> Iterator[Browser]:
    """One Chromium for all tests of this folder."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh browser: no cookies, nothing remembered."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def watch(context: BrowserContext) -> Watch:
    """What the fresh browser notices."""
    return Watch(context)


@pytest.fixture(scope="module")
def new_world(tmp_path_factory: pytest.TempPathFactory, sqlite_databases: SqliteDatabases) -> Iterator[World]:
    """A world whose processes have not been started, so that its settings can still be changed."""
    with sqlite_databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("world"), url)
        try:
            yield world
        finally:
            world.stop_all()


@pytest.fixture
def end_user() -> str:
    """The host's id of a person nobody has seen before."""
    return f"person-{next(_numbers)}"


class Host:
    """The SaaS that sends people here: makes links as its backend would."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._key = str(json.loads(world.run("apikey", "create", "--name", "host", "--json"))["key"])

    def link(self, end_user: str, **more: Any) -> str:
        """Make a connect link and return its address."""
        person = {"id": end_user, "email": f"{end_user}@example.com"}
        answer = self.api("POST", "connect-links", json={"end_user": person, **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["url"])

    def connections(self, end_user: str) -> list[dict[str, Any]]:
        """Return a person's connections."""
        return list(self.api("GET", f"connections?end_user={end_user}").json()["data"])

    def api(self, method: str, what: str, **options: Any) -> requests.Response:
        """Call the host API."""
        return requests.request(
            method, f"{self._world.url}/api/v1/{what}", headers={"Authorization": f"Bearer {self._key}"}, timeout=60,
            **options,
        )  # fmt: skip
