"""The Sequin client: what it sends, what it makes of answers the documentation contradicts itself about, and errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import requests
import responses

from broker.clock import ManualClock
from broker.errors import (
    AnswerTooLarge,
    BrokerError,
    ConnectionBroken,
    DeadlineExceeded,
    RedirectRefused,
    SequinError,
    SequinNotFound,
    SequinRefused,
    SequinUnauthorized,
    SequinUnavailable,
    UnusableAnswer,
)
from broker.http import Http
from broker.secret import Secret
from broker.sequin import Credential, Sequin, SequinOAuthApp, elements, moment

API = "https://sequin.example"
TOKEN = "SENTINEL-API-TOKEN"
STRIPE = {"kind": "stripe_oauth2", "secret": "SENTINEL-STRIPE", "test": True, "name": "Northwind"}
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
# As Sequin shows one; its documentation never agrees on `kind`, so it is given where it really stands.
SHOWN: dict[str, Any] = {
    "id": "5d0c8f52-6a43-4d0e-9a55-0a3c7f1e9b10",
    "provider": "stripe",
    "oauth_app_id": "0b7b7d0e-55f7-4a8c-8d63-7b1f0a3f2c11",
    "oauth_app": {"client_secret": "**********"},
    "properties": {"kind": "stripe_oauth2", "name": "Northwind", "secret": "***********", "test": True},
    "metadata": {"tenant": 7},
    "health": {"status": "ok", "notes": [], "time": "2024-03-01 08:00:01"},
    "created_at": "2024-03-01T08:00:00Z",
    "updated_at": "2023-12-15 01:29:29",
}
APP = {"id": "0b7b7d0e", "provider": "github", "client_id": "Iv1.example", "name": "Northwind", "client_secret": "****"}
ID = SHOWN["id"]


@pytest.fixture
def sequin() -> Iterator[Sequin]:
    http = Http(allow_plain_loopback=False, user_agent="broker-test")
    yield Sequin(http, url=f"{API}/", token=Secret(TOKEN), clock=ManualClock(NOW))
    http.close()


@pytest.fixture
def network() -> Iterator[responses.RequestsMock]:
    """A stand-in for the network that answers what each test adds."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def import_stripe(sequin: Sequin, **changes: Any) -> Credential:
    facts: dict[str, Any] = {"properties": STRIPE, "oauth_app_id": "app-1", "name": "Northwind", "metadata": {"a": 1}}
    return sequin.import_credential(**{**facts, **changes})


def failed(network: responses.RequestsMock, sequin: Sequin, **answer: Any) -> Any:
    """Return how an import fails when Sequin answers like this, after one request."""
    network.post(f"{API}/v1/credentials", **answer)
    with pytest.raises(BrokerError) as caught:
        import_stripe(sequin)
    assert len(network.calls) == 1
    assert "SENTINEL" not in str(caught.value)
    return caught.value


# --- importing ----------------------------------------------------------------------------------------


def test_an_import_sends_what_it_was_given_and_returns_the_credential(
    sequin: Sequin, network: responses.RequestsMock
) -> None:
    network.post(f"{API}/v1/credentials", json=SHOWN)
    credential = import_stripe(sequin)
    request = network.calls[0].request
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body or "") == {
        "properties": STRIPE,
        "oauth_app_id": "app-1",
        "name": "Northwind",
        "metadata": {"a": 1},
    }
    assert credential == Credential(
        id=ID,
        provider="stripe",
        kind="stripe_oauth2",
        oauth_app_id="0b7b7d0e-55f7-4a8c-8d63-7b1f0a3f2c11",
        properties=SHOWN["properties"],
        metadata={"tenant": 7},
        health_status="ok",
        health_notes=(),
        created_at=datetime(2024, 3, 1, 8, 0, tzinfo=UTC),
        updated_at=datetime(2023, 12, 15, 1, 29, 29, tzinfo=UTC),
    )
    assert credential.healthy


def test_metadata_and_name_are_left_out_unless_given(sequin: Sequin, network: responses.RequestsMock) -> None:
    network.post(f"{API}/v1/credentials", json=SHOWN, status=201)
    import_stripe(sequin, name=None, metadata=None)
    assert set(json.loads(network.calls[0].request.body or "")) == {"properties", "oauth_app_id"}


@pytest.mark.parametrize(
    ("properties", "field"),
    [
        ({"secret": "***********"}, "properties.secret"),
        ({"secret": "*"}, "properties.secret"),
        ({"nested": {"token": "****"}}, "properties.nested.token"),
        ({"scopes": ["a", "***"]}, "properties.scopes"),
    ],
)
def test_a_masked_value_is_refused_without_a_request(
    sequin: Sequin, network: responses.RequestsMock, properties: dict[str, object], field: str
) -> None:
    with pytest.raises(SequinRefused) as caught:
        import_stripe(sequin, properties=properties)
    assert list(caught.value.fields) == [field]
    assert len(network.calls) == 0


def test_an_import_without_an_oauth_app_is_refused_without_a_request(
    sequin: Sequin, network: responses.RequestsMock
) -> None:
    with pytest.raises(SequinRefused):
        import_stripe(sequin, oauth_app_id="")
    assert len(network.calls) == 0


# --- reading ------------------------------------------------------------------------------------------


def read(sequin: Sequin, network: responses.RequestsMock, body: Any) -> Credential:
    network.get(f"{API}/v1/credentials/{ID}", body=body if isinstance(body, str) else json.dumps(body))
    return sequin.credential(ID)


@pytest.mark.parametrize(
    "wrap", [lambda c: c, lambda c: {"data": c}, lambda c: {"data": [c]}], ids=["bare", "data", "list"]
)
def test_a_single_object_is_read_bare_or_in_an_envelope(
    sequin: Sequin, network: responses.RequestsMock, wrap: Callable[[Any], Any]
) -> None:
    assert read(sequin, network, wrap(SHOWN)).id == ID


@pytest.mark.parametrize(
    ("change", "attribute", "value"),
    [
        ({"kind": "top", "properties": {}}, "kind", "top"),
        ({"kind": "top"}, "kind", "stripe_oauth2"),
        ({"kind": None, "properties": None}, "kind", None),
        ({"metadata": '{"a": 1}'}, "metadata", {"a": 1}),
        ({"metadata": "not json"}, "metadata", {}),
        ({"metadata": None}, "metadata", {}),
        ({"health": None}, "health_status", None),
        ({"health": "ok"}, "health_status", None),
        ({"health": {"status": "error", "notes": ["a\x00b", 7, None]}}, "health_notes", ("a b",)),
        ({"health": {"notes": "x"}}, "health_notes", ()),
        ({"health": None}, "healthy", None),
        ({"health": {"status": "Healthy"}}, "healthy", True),
        ({"health": {"status": "error"}}, "healthy", False),
        ({"oauth_app_id": None}, "oauth_app_id", None),
        ({"provider": 7}, "provider", None),
        ({"created_at": "yesterday"}, "created_at", None),
        ({"properties": [1]}, "properties", {}),
    ],
)
def test_reading_is_tolerant_where_the_documentation_contradicts_itself(
    sequin: Sequin, network: responses.RequestsMock, change: dict[str, Any], attribute: str, value: object
) -> None:
    assert getattr(read(sequin, network, {**SHOWN, **change}), attribute) == value


@pytest.mark.parametrize(
    "body", ["[]", "{}", '{"id": 7}', '{"id": ""}', '{"id": "a/../b"}', '{"data": []}', '{"data": null}', '"x"', "null"]
)
def test_an_answer_without_an_id_is_unavailability_and_no_success(
    sequin: Sequin, network: responses.RequestsMock, body: str
) -> None:
    with pytest.raises(SequinUnavailable):
        read(sequin, network, body)


def test_a_page_of_html_with_200_is_unavailability(sequin: Sequin, network: responses.RequestsMock) -> None:
    assert type(failed(network, sequin, body="<html>", status=200)) is SequinUnavailable


def test_both_forms_of_a_time_are_read() -> None:
    assert moment("2024-02-20T02:10:52Z") == datetime(2024, 2, 20, 2, 10, 52, tzinfo=UTC)
    assert moment("2024-02-20 02:10:52") == datetime(2024, 2, 20, 2, 10, 52, tzinfo=UTC)
    assert moment("2024-02-20T03:10:52.5+01:00") == datetime(2024, 2, 20, 2, 10, 52, 500000, tzinfo=UTC)
    odds: list[object] = ["", "x", 7, None, {}, "0001-01-01T00:00:00+23:59"]
    for odd in odds:
        assert moment(odd) is None


def test_a_credential_prints_none_of_its_properties(sequin: Sequin, network: responses.RequestsMock) -> None:
    shown = {**SHOWN, "properties": {"secret": "SENTINEL"}}
    assert "SENTINEL" not in repr(read(sequin, network, shown))


# --- deleting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [{"status": 200, "json": {"id": ID, "deleted": True}}, {"status": 204}])
def test_a_deletion_takes_any_success(sequin: Sequin, network: responses.RequestsMock, answer: Any) -> None:
    network.delete(f"{API}/v1/credentials/{ID}", **answer)
    assert sequin.delete_credential(ID) is True


@pytest.mark.parametrize(
    "answer",
    [
        {"body": "<!doctype html><h1>One moment, please</h1>"},
        {"json": {"id": ID, "deleted": False}},
        {"json": {"id": 12345, "deleted": "not a number"}},
        {"json": {"id": "another"}},
        {"json": []},
    ],
)
def test_an_answer_that_cannot_mean_a_deletion_is_none(
    sequin: Sequin, network: responses.RequestsMock, answer: Any
) -> None:
    network.delete(f"{API}/v1/credentials/{ID}", **answer)
    with pytest.raises(SequinUnavailable):
        sequin.delete_credential(ID)


def test_deleting_what_is_gone_is_no_error(sequin: Sequin, network: responses.RequestsMock) -> None:
    network.delete(f"{API}/v1/credentials/{ID}", status=404, json={"summary": "not found"})
    assert sequin.delete_credential(ID) is False


@pytest.mark.parametrize("id_", ["", "..", ".", "a/b", "a?b", "a b", "%2e%2e", "x" * 200])
def test_an_id_that_would_address_something_else_is_never_sent(
    sequin: Sequin, network: responses.RequestsMock, id_: str
) -> None:
    with pytest.raises(SequinNotFound):
        sequin.credential(id_)
    assert sequin.delete_credential(id_) is False
    assert len(network.calls) == 0


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, SequinRefused),
        (401, SequinUnauthorized),
        (403, SequinRefused),
        (404, SequinNotFound),
        (409, SequinRefused),
        (408, SequinUnavailable),
        (422, SequinRefused),
        (429, SequinUnavailable),
        (500, SequinUnavailable),
        (501, SequinUnavailable),
        (502, SequinUnavailable),
        (504, SequinUnavailable),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        '{"summary": "no"}',
        '{"errors": {"detail": "no"}}',
        "",
        "<html>no</html>",
        "[]",
        "null",
        '{"summary": {"a": [1]}, "validation_errors": "odd", "errors": 7}',
        '{"validation_errors": [[{"a": null}]]}',
    ],
)
def test_an_error_is_classified_by_its_status_whatever_its_body(
    sequin: Sequin, network: responses.RequestsMock, status: int, kind: type[SequinError], body: str
) -> None:
    error = failed(network, sequin, body=body, status=status)
    assert type(error) is kind
    assert error.detail.startswith(f"POST /v1/credentials: HTTP {status}")


@pytest.mark.parametrize("body", [{"summary": "because"}, {"errors": {"detail": "because"}}])
def test_what_sequin_says_is_told_to_the_operator(sequin: Sequin, network: responses.RequestsMock, body: Any) -> None:
    assert failed(network, sequin, json=body, status=422).detail == "POST /v1/credentials: HTTP 422: because"


def test_fields_are_flattened_to_dotted_paths(sequin: Sequin, network: responses.RequestsMock) -> None:
    errors = {
        "oauth_app_id": ["does not exist"],
        "properties": {"secret": ["can't be blank", "is short"], "account": {"type": ["is invalid"]}},
        "metadata": "is odd",
        "list": [{"a": ["x"]}, {"b": "y"}],
    }
    error = failed(network, sequin, json={"summary": "Validation failed", "validation_errors": errors}, status=422)
    assert error.fields == {
        "oauth_app_id": ["does not exist"],
        "properties.secret": ["can't be blank", "is short"],
        "properties.account.type": ["is invalid"],
        "metadata": ["is odd"],
        "list.a": ["x"],
        "list.b": ["y"],
    }
    assert (
        "Validation failed; oauth_app_id: does not exist; properties.secret: can't be blank, is short" in error.detail
    )


def test_fields_are_capped_in_number_and_length(sequin: Sequin, network: responses.RequestsMock) -> None:
    errors: dict[str, Any] = {f"f{n}" + "x" * 999: ["y\x1b" * 200] * 10 for n in range(40)}
    nested: dict[str, Any] = {}
    errors["f0"] = nested
    for _ in range(60):
        nested["n"] = nested = {}
    fields = failed(network, sequin, json={"validation_errors": errors}, status=422).fields
    assert len(fields) == 20
    assert max(map(len, fields)) <= 100
    assert max(len(reasons) for reasons in fields.values()) == 5
    assert max(len(reason) for reasons in fields.values() for reason in reasons) == 200
    assert all(reason.isprintable() for reasons in fields.values() for reason in reasons)


def test_an_error_that_echoes_secrets_is_masked_everywhere(sequin: Sequin, network: responses.RequestsMock) -> None:
    echo = f"got {STRIPE['secret']} with {TOKEN}"
    body = {"summary": echo, "validation_errors": {"properties": {"secret": [echo], str(STRIPE["secret"]): [echo]}}}
    error = failed(network, sequin, json=body, status=422)
    assert "SENTINEL" not in f"{error} {error.fields} {error!r}"
    assert error.fields["properties.secret"] == ["got ••• with •••"]


def test_what_is_no_secret_may_be_named(sequin: Sequin, network: responses.RequestsMock) -> None:
    error = failed(network, sequin, json={"summary": "unknown kind stripe_oauth2 of Northwind"}, status=422)
    assert "stripe_oauth2 of Northwind" in error.detail


@pytest.mark.parametrize(
    ("value", "seconds"), [("9", 9.0), ("99999", 900.0), ("Sun, 22 Nov 2026 12:00:20 GMT", 20.0), ("x", None)]
)
def test_how_long_to_wait_is_passed_on(
    sequin: Sequin, network: responses.RequestsMock, value: str, seconds: float | None
) -> None:
    assert failed(network, sequin, status=429, headers={"Retry-After": value}).retry_after == seconds


def test_failures_of_the_network_pass_through(sequin: Sequin, network: responses.RequestsMock) -> None:
    network.get(f"{API}/v1/credentials/a", status=307, headers={"Location": "https://evil.example/"})
    network.get(f"{API}/v1/credentials/b", body=requests.exceptions.ReadTimeout("no"))
    with pytest.raises(RedirectRefused):
        sequin.credential("a")
    with pytest.raises(DeadlineExceeded) as caught:
        sequin.credential("b")
    assert caught.value.sent


# --- OAuth apps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda apps: {"data": apps}, lambda apps: apps], ids=["data", "bare"])
def test_oauth_apps_are_listed_without_asking_for_their_secrets(
    sequin: Sequin, network: responses.RequestsMock, wrap: Callable[[Any], Any]
) -> None:
    network.get(f"{API}/v1/oauth-apps", json=wrap([APP, {"id": "b", "client_id": None}]))
    assert sequin.oauth_apps() == [
        SequinOAuthApp("0b7b7d0e", "github", "Iv1.example", "Northwind"),
        SequinOAuthApp("b", None, None, None),
    ]
    assert network.calls[0].request.url == f"{API}/v1/oauth-apps"


@pytest.mark.parametrize("body", [{}, {"data": {}}, [7], "x"])
def test_a_list_of_oauth_apps_that_is_none_is_unavailability(
    sequin: Sequin, network: responses.RequestsMock, body: Any
) -> None:
    network.get(f"{API}/v1/oauth-apps", json=body)
    with pytest.raises(SequinUnavailable):
        sequin.oauth_apps()


def test_an_oauth_app_is_created_with_one_request_that_is_not_repeated(
    sequin: Sequin, network: responses.RequestsMock
) -> None:
    network.post(f"{API}/v1/oauth-apps", json={"summary": "SENTINEL"}, status=503)
    network.post(f"{API}/v1/oauth-apps", json=APP)
    facts: dict[str, Any] = {"provider": "github", "client_id": "Iv1.example", "name": "Northwind"}
    with pytest.raises(SequinUnavailable) as caught:
        sequin.create_oauth_app(**facts, client_secret=Secret("SENTINEL"))
    assert len(network.calls) == 1
    assert "SENTINEL" not in str(caught.value)
    assert sequin.create_oauth_app(**facts, client_secret=Secret("SENTINEL")).id == "0b7b7d0e"
    assert json.loads(network.calls[1].request.body or "") == {**facts, "client_secret": "SENTINEL"}


# --- the list of credentials --------------------------------------------------------------------------


def test_credentials_are_listed_one_by_one(sequin: Sequin, network: responses.RequestsMock) -> None:
    many = [{**SHOWN, "id": f"id-{n}"} for n in range(3000)]
    network.get(f"{API}/v1/credentials", json={"data": many})
    assert [credential.id for credential in sequin.credentials()] == [f"id-{n}" for n in range(3000)]


def test_an_error_instead_of_the_list_is_an_error(sequin: Sequin, network: responses.RequestsMock) -> None:
    network.get(f"{API}/v1/credentials", json={"summary": f"bad {TOKEN}"}, status=401)
    with pytest.raises(SequinUnauthorized, match="HTTP 401: bad •••"):
        list(sequin.credentials())


@pytest.mark.parametrize(
    "body", ["<html>", "", '{"data": [{"id": "a"}', '{"data": [{"id": "a"}, 7]}', '{"data": [{}]}', "{}"]
)
def test_a_list_that_is_not_whole_is_never_taken_for_complete(
    sequin: Sequin, network: responses.RequestsMock, body: str
) -> None:
    network.get(f"{API}/v1/credentials", body=body)
    with pytest.raises(SequinUnavailable):
        list(sequin.credentials())


def in_pieces(text: str, size: int) -> Iterable[bytes]:
    data = text.encode()
    return (data[at : at + size] for at in range(0, len(data), size))


LISTS: list[tuple[str, list[object]]] = [
    ('{"data":[]}', []),
    ("[]", []),
    (' [ { "id" : "a" } , {"id":"é\\u00e9 ]}"} ] ', [{"id": "a"}, {"id": "éé ]}"}]),
    ('{"meta": {"data": [9]}, "n": 12, "data" : [{"a": [1, {"b": []}]}, 123, "x", null, true], "more": 1}',
     [{"a": [1, {"b": []}]}, 123, "x", None, True]),
    ("\ufeff[1]", [1]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), LISTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_a_list_is_read_however_it_is_cut(text: str, expected: list[object], size: int) -> None:
    assert list(elements(in_pieces(text, size))) == expected


@pytest.mark.parametrize(
    "text",
    ["", "{", "[", "[1", "[1,", "[1,]", "[1 2]", "{}", '{"data":{}}', '{"a":1}', '{"data"', "7", "[}", '["a', "{1:2}"],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_what_is_no_list_or_ends_early_is_unusable(text: str, size: int) -> None:
    with pytest.raises(UnusableAnswer):
        list(elements(in_pieces(text, size)))


def test_members_are_handed_out_before_the_list_ends() -> None:
    def chunks() -> Iterator[bytes]:
        yield b'[{"id": 1}, {"id": 2}, {'
        raise ConnectionBroken("cut")

    found: list[object] = []
    with pytest.raises(ConnectionBroken):
        found.extend(elements(chunks()))
    reading = elements(chunks())
    assert [next(reading), next(reading)] == [{"id": 1}, {"id": 2}]


def test_a_member_without_end_is_cut_off() -> None:
    def endless() -> Iterator[bytes]:
        yield b'["'
        while True:
            yield b"a" * 65536

    with pytest.raises(AnswerTooLarge):
        list(elements(endless()))


def test_a_member_nested_without_end_is_refused() -> None:
    with pytest.raises(UnusableAnswer):
        list(elements(in_pieces("[" + "[" * 200_000, 65536)))
