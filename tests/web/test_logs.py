"""One line per event, with the reference and without secrets."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import urllib3

from broker import logs
from broker.secret import Secret
from tests.web.fakes import TOKEN, application, services


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    levels = {name: logging.getLogger(name).level for name in logs.QUIET}
    text = io.StringIO()
    logs.configure("DEBUG", "json", text)
    yield text
    logging.captureWarnings(False)
    root.handlers[:], level = before[0], before[1]
    root.setLevel(level)
    for name, kept in levels.items():
        logging.getLogger(name).setLevel(kept)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json(stream: io.StringIO) -> None:
    structlog.get_logger("broker.test").info("flow.left", flow="7F3K", app="stripe", note="two\nlines")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"], line["flow"]) == ("flow.left", "info", "broker.test", "7F3K")
    assert line["time"].endswith("Z")


def test_keys_that_name_a_secret_are_dropped_at_any_depth(stream: io.StringIO) -> None:
    structlog.get_logger("broker.test").info(
        "told",
        token="t1",
        access_token="t2",
        code="t3",
        state="t4",
        Authorization="t5",
        code_verifier="t6",
        client_secret="t7",
        deep={"Set-Cookie": "t8", "list": [{"password": "t9"}], "status": "kept"},
        import_state="kept",
        error_code="kept",
    )
    assert not any(f"t{number}" in stream.getvalue().replace("told", "") for number in range(1, 10))
    assert stream.getvalue().count("kept") == 3


@pytest.mark.parametrize(
    "text",
    [
        "GET https://api.test/token?code=s3cr3t&state=s3cr3t",
        "/oauth/stripe/callback?state=s3cr3t",
        "/connect/s3cr3ts3cr3ts3cr3t",
        "Authorization: Bearer s3cr3ts3cr3t",
        "key sk_live_s3cr3ts3cr3t and gho_s3cr3ts3cr3t",
        "brk_s3cr3ts3cr3t",
    ],
)
def test_texts_lose_what_has_the_form_of_a_secret(text: str) -> None:
    assert "s3cr3t" not in logs.scrub(text)


def test_plain_sentences_stay_as_they_are() -> None:
    for text in ("Really? Yes = no.", "flow.left", "https://api.test/v1/credentials", "why? because"):
        assert logs.scrub(text) == text


def test_secrets_print_as_dots(stream: io.StringIO) -> None:
    structlog.get_logger("broker.test").info("held", value=Secret("s3cr3t"), many=[Secret("s3cr3t")])
    assert "s3cr3t" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_tracebacks_show_no_local_variables_and_no_queries(stream: io.StringIO, form: Any) -> None:
    logs.configure("DEBUG", form, stream)
    made_up = Secret("s3cr3t").reveal()
    try:
        raise ValueError("GET https://api.test/token?code=" + made_up)
    except ValueError:
        structlog.get_logger("broker.test").exception("crashed")
        logging.getLogger("someone.else").exception("crashed too")
    assert "ValueError" in stream.getvalue()
    assert made_up not in stream.getvalue()


def test_the_standard_librarys_loggers_use_the_same_door(stream: io.StringIO) -> None:
    structlog.contextvars.bind_contextvars(ref="7F3K-92QD-M4TX")
    logging.getLogger("someone.else").info("asked %s", "/x?code=s3cr3t", extra={"token": "s3cr3t", "kept": 1})
    (line,) = lines(stream)
    assert (line["event"], line["ref"], line["kept"]) == ("asked /x?…", "7F3K-92QD-M4TX", 1)


class _Full(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_line_that_cannot_be_written_costs_that_line_alone(stream: io.StringIO) -> None:
    gone = io.StringIO()
    gone.close()
    for broken in (_Full(), gone):
        logs.configure("INFO", "json", broken)
        structlog.get_logger("broker.test").info("flow.left")
    logs.configure("INFO", "json", stream)
    structlog.get_logger("broker.test").info("flow.done")
    assert [line["event"] for line in lines(stream)] == ["flow.done"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.usefixtures("stream")
def test_a_character_that_cannot_be_written_does_not_cost_its_line(encoding: str) -> None:
    raw = io.BytesIO()
    logs.configure("INFO", "text", io.TextIOWrapper(raw, encoding=encoding))
    structlog.get_logger("broker.test").info("Jürgen \ud800")
    assert r"Jürgen \ud800" in raw.getvalue().decode(encoding)


class _Mute:
    def __str__(self) -> str:
        raise ZeroDivisionError("s3cr3t")


def test_facts_that_cannot_be_told_end_nothing(stream: io.StringIO) -> None:
    round_and_round: dict[str, object] = {}
    round_and_round["again"] = round_and_round
    for fact in (_Mute(), round_and_round, {("a", "b"): 1}):
        structlog.get_logger("broker.test").info("flow.left", fact=fact)
    told = stream.getvalue()
    assert [line.partition(": could")[0] for line in told.splitlines()] == ["broker.test: flow.left"] * 3
    assert "s3cr3t" not in told


def test_events_below_the_level_are_not_written(stream: io.StringIO) -> None:
    logs.configure("warning", "json", stream)
    log = structlog.get_logger("broker.test")
    log.info("flow.left")
    log.warning("flow.%s", "interrupted")
    assert [line["event"] for line in lines(stream)] == ["flow.interrupted"]


def test_libraries_that_quote_addresses_are_quiet_at_debug(stream: io.StringIO) -> None:
    logging.getLogger(urllib3.__name__ + ".connectionpool").debug("GET /x?code=s3cr3t")
    logging.getLogger("sqlalchemy.engine").info("INSERT …")
    assert stream.getvalue() == ""


def test_every_request_is_one_line_without_its_query_or_token(stream: io.StringIO) -> None:
    client = application(services()).test_client()
    answer = client.get(f"/connect/{TOKEN}?theme=dark&code=s3cr3t")
    (line,) = [line for line in lines(stream) if line["event"] == "request"]
    assert line["route"] == "/connect/<token>"
    assert (line["method"], line["status"], line["ref"]) == ("GET", 200, answer.headers["X-Request-Id"])
    assert isinstance(line["ms"], float)
    assert TOKEN not in stream.getvalue()
    assert "s3cr3t" not in stream.getvalue()


def test_a_crash_is_logged_under_the_reference_people_see(stream: io.StringIO) -> None:
    fake = services()
    fake.links.failure = ZeroDivisionError("s3cr3t")
    answer = application(fake).test_client().get(f"/connect/{TOKEN}")
    (crash,) = [line for line in lines(stream) if line["event"] == "crashed"]
    assert crash["ref"] == answer.headers["X-Request-Id"]
    assert "ZeroDivisionError" in crash["exception"]
    assert TOKEN not in stream.getvalue()
