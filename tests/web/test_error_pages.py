"""Every failure there is has a page: a sentence, what to do, and a reference that operators find in the log."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, MutableMapping
from html import unescape
from importlib import import_module
from typing import Any

import pytest
import structlog
from flask import Flask
from structlog.testing import LogCapture

import broker
from broker.errors import BrokerError
from broker.web.languages import translated
from tests.web.fakes import application, services

APART = ("broker.app", "broker.cli", "broker.demo", "broker.sandbox", "broker.server", "broker.__main__")


def failures(of: type[BrokerError] = BrokerError) -> Iterator[type[BrokerError]]:
    yield of
    for each in of.__subclasses__():
        yield from failures(each)


for module in pkgutil.walk_packages(broker.__path__, "broker."):
    if not module.name.startswith(APART):
        import_module(module.name)
FAILURES = sorted(
    {each for each in failures() if not each.__module__.startswith(APART)}, key=lambda each: (each.code, each.__name__)
)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[MutableMapping[str, Any]]]:
    """Everything logged, without a terminal's pictures of tracebacks, which take long."""
    entries = LogCapture()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, entries])
    yield entries.entries
    structlog.configure(processors=before)


@pytest.fixture(scope="module")
def app() -> Flask:
    """A broker in which every failure has an address where it happens."""

    def boom(number: int) -> str:
        # Not its own constructor: what only the one who raises it knows does not stand on a page.
        error = FAILURES[number].__new__(FAILURES[number])
        Exception.__init__(error, error.code)
        error.detail = ""
        raise error

    made = application(services())
    made.add_url_rule("/boom/<int:number>", "boom", boom)
    return made


def address(failure: type[BrokerError]) -> str:
    return f"/boom/{FAILURES.index(failure)}"


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_failure_has_a_page(app: Flask, language: str) -> None:
    client = app.test_client()
    for failure in FAILURES:
        answer = client.get(address(failure), headers={"Accept-Language": language})
        page = unescape(answer.text)

        with app.test_request_context(headers={"Accept-Language": language}):
            words = {"provider": translated("the other side"), "host": "Acme Analytics"}
            heading, advice = translated(failure.heading, **words), translated(failure.advice, **words)
        assert answer.status_code >= 400, failure
        assert f"<h1>{heading[0].upper()}{heading[1:]}</h1>" in page, failure
        assert advice[1:] in page, failure
        assert answer.headers["X-Request-Id"] in page, failure
        assert failure.cure.endswith("."), failure
        assert "{" not in page, failure


@pytest.mark.parametrize("failure", [BrokerError, *BrokerError.__subclasses__()[:3]], ids=lambda each: each.__name__)
def test_the_reference_of_the_page_is_in_the_log(
    app: Flask, log: list[MutableMapping[str, Any]], failure: type[BrokerError]
) -> None:
    answer = app.test_client().get(address(failure))

    refs = {entry["ref"] for entry in log if entry.get("error") == failure.code}
    assert refs == {answer.headers["X-Request-Id"]}
