"""Reading what providers send back: strict, small, and never a 500."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.callback import MOST_BYTES, MOST_FIELDS, CallbackAnswer, parse_callback, parse_setup
from broker.errors import CallbackInvalid
from broker.text import storable


def refused(query: bytes) -> str:
    with pytest.raises(CallbackInvalid) as caught:
        parse_callback(query)
    # The query may hold the code: neither the text nor a cause may quote it.
    assert "SENTINEL" not in str(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.detail


def test_a_code_and_a_state_are_an_answer() -> None:
    answer = parse_callback(b"code=ac_1&state=s%2F1&scope=read_write")
    assert answer.code is not None
    assert (answer.code.reveal(), answer.state.reveal()) == ("ac_1", "s/1")
    assert (answer.error, answer.error_description, answer.issuer) == (None, "", None)


def test_an_error_and_a_state_are_an_answer() -> None:
    answer = parse_callback(b"error=access_denied&error_description=The+user+denied&state=s")
    assert answer.code is None
    assert (answer.error, answer.error_description) == ("access_denied", "The user denied")


def test_the_issuer_is_read_decoded() -> None:
    answer = parse_callback(b"code=c&state=s&iss=https%3A%2F%2Fgithub.com%2Flogin%2Foauth")
    assert answer.issuer == "https://github.com/login/oauth"


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"code=SENTINEL",
        b"state=SENTINEL",
        b"state=&code=SENTINEL",
        b"state=SENTINEL&code=",
        b"state=s&code=SENTINEL&error=access_denied",
        b"state=s&state=s&code=SENTINEL",
        b"state=s&code=SENTINEL&code=c",
        b"state=s&code=c&iss=a&iss=SENTINEL",
        b"state=s&code=c&other=1&other=SENTINEL",
        b"state=s&code=SENTINEL%00",
        b"state=s&code=SENTINEL%ff",
        b"state=s&code=SENTINEL%ED%A0%80",
        "state=s&code=SENTINELé".encode(),
        b"state=s&code=SENTINEL&bare",
        b"state=s&&code=SENTINEL",
        b"state=" + b"SENTINEL" * 100 + b"&code=c",
        b"state=s&code=" + b"SENTINEL" * 1000,
        b"state=s&code=c&unknown=" + b"SENTINEL" * 300,
        b"state=s&code=c&" + b"&".join(b"f%d=SENTINEL" % n for n in range(MOST_FIELDS)),
        b"state=s&code=SENTINEL&x=" + b"%41" * MOST_BYTES,
    ],
)
def test_what_is_missing_doubled_oversized_or_oddly_encoded_is_refused(query: bytes) -> None:
    assert refused(query)


def test_a_code_as_long_as_providers_make_them_is_taken() -> None:
    answer = parse_callback(b"state=" + b"s" * 512 + b"&code=" + b"c" * 4096)
    assert answer.code is not None
    assert len(answer.code) == 4096


def test_the_providers_error_text_becomes_one_short_storable_line() -> None:
    text = quote("a\r\nb\u202e<script>" + "x" * 500)
    answer = parse_callback(f"state=s&error={quote('bad' + chr(10) + 'x' * 100)}&error_description={text}".encode())
    assert answer.error is not None
    assert len(answer.error) <= 64
    assert len(answer.error_description) <= 300
    for told in (answer.error, answer.error_description):
        assert told.isprintable()
        assert storable(told)


@given(st.binary(max_size=300))
def test_no_query_whatever_makes_anything_but_an_answer_or_a_refusal(query: bytes) -> None:
    for parse in (parse_callback, parse_setup):
        with suppress(CallbackInvalid):
            parse(query)


@given(st.dictionaries(st.sampled_from(["code", "state", "error", "iss"]), st.text(max_size=40)))
def test_an_answer_never_holds_a_code_and_an_error(values: dict[str, str]) -> None:
    pairs = "&".join(f"{name}={quote(value, errors='surrogatepass')}" for name, value in values.items())
    try:
        answer = parse_callback(pairs.encode("ascii"))
    except CallbackInvalid:
        return
    assert (answer.code is None) != (answer.error is None)
    assert answer.state


def test_what_came_back_shows_neither_state_nor_code() -> None:
    answer = parse_callback(b"code=SENTINEL-C&state=SENTINEL-S")
    assert isinstance(answer, CallbackAnswer)
    assert "SENTINEL" not in repr(answer)


# --- the installation page ------------------------------------------------------------------------------


def test_an_installation_comes_back_with_number_and_state() -> None:
    answer = parse_setup(b"installation_id=42&setup_action=install&state=s")
    assert answer.state is not None
    assert (answer.unverified_installation_id, answer.action, answer.state.reveal()) == ("42", "install", "s")


def test_a_request_to_an_owner_comes_back_without_a_number() -> None:
    answer = parse_setup(b"setup_action=request&state=s")
    assert answer.unverified_installation_id is None


@pytest.mark.parametrize("query", [b"installation_id=42&setup_action=update", b"setup_action=install&state="])
def test_a_visit_without_our_state_has_none(query: bytes) -> None:
    assert parse_setup(query).state is None


@pytest.mark.parametrize(
    "query",
    [
        b"",
        b"installation_id=42&state=s",
        b"installation_id=42&setup_action=delete&state=s",
        b"installation_id=&setup_action=install&state=s",
        b"installation_id=-1&setup_action=install&state=s",
        b"installation_id=4.2&setup_action=install&state=s",
        b"installation_id=%D9%A4&setup_action=install&state=s",
        b"installation_id=" + b"9" * 21 + b"&setup_action=install&state=s",
        b"installation_id=1&installation_id=2&setup_action=install&state=s",
        b"installation_id=1&setup_action=install&state=s&state=t",
        b"installation_id=1&setup_action=install&state=%00",
    ],
)
def test_a_malformed_return_from_the_installation_page_is_refused(query: bytes) -> None:
    with pytest.raises(CallbackInvalid):
        parse_setup(query)


# --- odd encodings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        b"code=c&state=s&x=%zz",
        b"code=c&state=s&x=%",
        b"code=c&state=s&x=%u0041",
        b"code=c%zz&state=s",
        b"code=c&state=s&=v",
    ],
)
def test_a_broken_escape_or_a_nameless_parameter_is_refused(query: bytes) -> None:
    with pytest.raises(CallbackInvalid):
        parse_callback(query)


@pytest.mark.parametrize("query", [b"code=c%0D%0AX&state=s", b"code=%F0%9F%98%80&state=s", b"code=c&state=s%7F"])
def test_a_code_or_state_of_anything_but_printable_ascii_is_refused(query: bytes) -> None:
    with pytest.raises(CallbackInvalid):
        parse_callback(query)
