"""Connections: one status told twice, lists that narrow and page, and asking for an import again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa

from broker.audit import Actor
from broker.connection_search import ConnectionFilters, CursorUnknown
from broker.connections import ConnectionEnded, ConnectionUnknown, TokenErased
from broker.contract import MOST_ON_A_PAGE
from broker.links import LinkRequest
from broker.models import ConnectedAccount, ImportState, Job, JobState, Link
from broker.status import NOTES, Status, status_expression, status_of
from tests.connecting import github_app
from tests.house import START, House, open_house

STAFF = Actor("operator", "sam@example.com")
DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Facts:
    disconnected_at: datetime | None = None
    revoked_at: datetime | None = None
    interrupted_at: datetime | None = None
    health: str | None = None
    checked_at: datetime | None = None
    import_state: str = ImportState.IMPORTED
    account_id: str | None = "acct_1"


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


def refs(house: House, **filters: Any) -> list[str]:
    return [view.ref for view in house.connections.page(ConnectionFilters(**filters), limit=100).items]


# --- the status -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (Facts(), Status.UNKNOWN),
        (Facts(import_state=ImportState.PENDING), Status.PENDING),
        (Facts(import_state=ImportState.PARKED), Status.IMPORT_FAILED),
        (Facts(import_state=ImportState.HELD), Status.IMPORT_FAILED),
        (Facts(health="ok", checked_at=START), Status.OK),
        (Facts(health="ok", checked_at=START - DAY), Status.OK),
        (Facts(health="ok", checked_at=START - DAY - timedelta(microseconds=1)), Status.UNKNOWN),
        (Facts(health="ok"), Status.UNKNOWN),
        (Facts(health="ok", checked_at=START, import_state=ImportState.PENDING), Status.PENDING),
        (Facts(health="error", checked_at=START, import_state=ImportState.PARKED), Status.ERROR),
        (Facts(interrupted_at=START, health="error"), Status.INTERRUPTED),
        (Facts(account_id=None, import_state=ImportState.PENDING), Status.AWAITING_APPROVAL),
        (Facts(account_id=None, import_state=ImportState.PENDING, disconnected_at=START), Status.DISCONNECTED),
        (Facts(revoked_at=START, interrupted_at=START, health="error"), Status.REVOKED),
        (Facts(disconnected_at=START, revoked_at=START, health="ok", checked_at=START), Status.DISCONNECTED),
    ],
)
def test_the_first_step_that_applies_is_the_status(facts: Facts, status: Status) -> None:
    assert status_of(facts, START) is status


def test_the_status_in_sql_is_the_status_in_python(house: House) -> None:
    ages = [None, timedelta(0), DAY - timedelta(seconds=1), DAY, DAY + timedelta(seconds=1), timedelta(days=40)]
    combinations = product([None, START], [None, START], [None, START], [None, "ok", "error"], ages, ImportState)
    person = house.end_user("user-1")
    expected: dict[str, Status] = {}
    for number, (disconnected_at, revoked_at, interrupted_at, health, age, state) in enumerate(combinations):
        account_id = None if number % 7 == 0 else f"acct_{number}"
        checked_at = None if age is None else START - age
        facts = Facts(disconnected_at, revoked_at, interrupted_at, health, checked_at, state, account_id)
        expected[house.connection(person, **vars(facts))] = status_of(facts, START)
    assert set(expected.values()) == set(Status)
    with house.database.read() as connection:
        told = connection.execute(sa.select(ConnectedAccount.ref, status_expression(START))).all()
    assert {ref: Status(status) for ref, status in told} == expected
    for status in Status:
        page = house.connections.page(ConnectionFilters(status=status), limit=MOST_ON_A_PAGE)
        assert {view.status for view in page.items} <= {status}


def test_what_people_read_never_names_our_machinery(house: House) -> None:
    assert set(NOTES) == set(Status)
    for note in NOTES.values():
        words = note.lower()
        assert not any(word in words for word in ("sequin", "import", "token", "oauth", "http", "grant"))
        assert note.endswith(".")


# --- one connection ---------------------------------------------------------------------------------


def test_a_connection_is_shown_without_its_grant(house: House) -> None:
    person = house.end_user("user-1", email="jo@example.com", name="Jo")
    ref = house.connection(
        person, grant_sealed=b"\x01sealed bytes", host_metadata={"plan": "pro"}, account_name="<b>Acme\u202e</b>"
    )
    view = house.connections.find(ref)
    assert view.end_user.label == "jo@example.com"
    assert view.account is not None
    assert view.account.name == "<b>Acme\u202e</b>"
    assert view.provider_title == "Stripe"
    assert view.metadata == {"plan": "pro"}
    assert view.holds_grant
    assert "sealed bytes" not in repr(view)
    assert house.connections.by_id(view.id) == view


@pytest.mark.parametrize("ref", ["", "NOPE", "a\x00b", "\ud800", "x" * 5_000])
def test_an_unknown_reference_is_unknown(house: House, ref: str) -> None:
    with pytest.raises(ConnectionUnknown):
        house.connections.find(ref)
    with pytest.raises(ConnectionUnknown):
        house.connections.retry(ref, actor=STAFF)


def test_an_unconfigured_app_still_has_a_name_for_people(house: House) -> None:
    ref = house.connection(house.end_user("user-1"), app_key="gone", provider="github_oauth")
    assert house.connections.find(ref).provider_title == "Github Oauth"


def test_a_failed_import_tells_operators_the_facts_and_the_cure(house: House) -> None:
    ref = house.connection(
        house.end_user("user-1"),
        import_state=ImportState.HELD,
        import_error="sequin_unauthorized",
        import_error_detail="Sequin answered 401",
    )
    view = house.connections.find(ref)
    assert view.operator_note.startswith("Sequin answered 401. Put a valid Sequin API token into SEQUIN_API_TOKEN")
    assert view.hand_off.cure
    assert view.note == NOTES[Status.IMPORT_FAILED]


def test_a_code_of_another_version_is_shown_without_a_cure(house: House) -> None:
    ref = house.connection(house.end_user("user-1"), import_state=ImportState.PARKED, import_error="from_the_future")
    view = house.connections.find(ref)
    assert view.hand_off.error == "from_the_future"
    assert view.operator_note == "from_the_future."


def test_attempts_come_from_the_job(house: House) -> None:
    ref = house.connection(house.end_user("user-1"), import_state=ImportState.PENDING)
    house.insert(
        Job, kind="import", subject_id=house.key_of(ref), state=JobState.WAITING, due_at=START, failures=3,
        failing_since=START, error="unreachable", error_detail="no route", created_at=START, updated_at=START,
    )  # fmt: skip
    # A job of another kind with the same subject must not be taken for it.
    house.insert(
        Job, kind="finish", subject_id=house.key_of(ref), state=JobState.WAITING, failures=9,
        created_at=START, updated_at=START,
    )  # fmt: skip
    hand_off = house.connections.find(ref).hand_off
    assert (hand_off.failures, hand_off.next_attempt_at, hand_off.error) == (3, START, "unreachable")
    assert len(refs(house)) == 1


# --- lists ------------------------------------------------------------------------------------------


def test_pages_follow_each_other_without_gap_or_repeat(house: House) -> None:
    person = house.end_user("user-1")
    made = [house.connection(person) for _ in range(7)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = house.connections.page(ConnectionFilters(), limit=3, cursor=cursor)
        seen += [view.ref for view in page.items]
        # What is connected meanwhile is newer than everything still to come.
        house.connection(person)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == made[::-1]


@pytest.mark.parametrize("cursor", ["", "NOPE", "\x00", "\ud800", "NOPE.pyw", "NOPE.7", "NOPE."])
def test_an_unknown_cursor_is_refused(house: House, cursor: str) -> None:
    with pytest.raises(CursorUnknown):
        house.connections.page(ConnectionFilters(), limit=10, cursor=cursor)


def test_filters_narrow_and_combine(house: House) -> None:
    jo, sam = house.end_user("jo"), house.end_user("sam")
    first = house.connection(jo, account_id="acct_a", mode="test")
    second = house.connection(jo, app_key="gh", provider="github", kind="github_app", account_id="42")
    third = house.connection(sam, account_id="acct_c", import_state=ImportState.PENDING)
    assert refs(house) == [third, second, first]
    assert refs(house, end_user="jo") == [second, first]
    assert refs(house, end_user="nobody") == []
    assert refs(house, provider="github") == refs(house, app="gh") == refs(house, kind="github_app") == [second]
    assert refs(house, account="acct_a") == refs(house, mode="test") == [first]
    assert refs(house, status=Status.PENDING) == [third]
    assert refs(house, status=Status.PENDING, end_user="jo") == []
    assert refs(house, status=Status.INTERRUPTED) == []


@pytest.mark.parametrize(
    ("metadata", "key", "value"),
    [
        ({"plan": "pro"}, "plan", "pro"),
        ({"a.b": "x"}, "a.b", "x"),
        ({'say "hi"': "x"}, 'say "hi"', "x"),
        ({"it's": "x"}, "it's", "x"),
        ({"$[0]": "x"}, "$[0]", "x"),
        ({"seats": 7}, "seats", "7"),
        ({"share": 1.5}, "share", "1.5"),
        ({"beta": True}, "beta", "true"),
        ({"beta": False}, "beta", "false"),
        ({"name": "日本 🎉"}, "name", "日本 🎉"),
        ({"sql": "' OR 1=1 --"}, "sql", "' OR 1=1 --"),
    ],
)
def test_metadata_is_found_by_its_text(house: House, metadata: dict[str, object], key: str, value: str) -> None:
    person = house.end_user("jo")
    ref = house.connection(person, host_metadata=metadata)
    house.connection(person, host_metadata={"other": value})
    house.connection(person, host_metadata={key: "something else"})
    assert refs(house, metadata={key: value}) == [ref]
    assert refs(house, metadata={key: value, "missing": "x"}) == []


@pytest.mark.parametrize("text", ["a\x00b", "\ud800"])
def test_text_no_row_can_hold_matches_nothing(house: House, text: str) -> None:
    house.connection(house.end_user("jo"))
    for filters in ({"end_user": text}, {"account": text}, {"search": text}, {"metadata": {text: "x"}}):
        assert refs(house, **filters) == []


def test_search_finds_exactly_what_it_is_given(house: House) -> None:
    person = house.end_user("jo")
    ref = house.connection(person, ref="7F3K-92QD-M4T0", account_id="acct_x", credential_id="crd_9")
    house.connection(house.end_user("other"))
    for text in ("7F3K-92QD-M4T0", "7f3k92qdm4to", "ref 7F3K-92QD-M4T0", "acct_x", "crd_9", "jo"):
        assert refs(house, search=text) == [ref]
    for text in ("acct", "j", "%", "_", "'", "7F3K"):
        assert refs(house, search=text) == []


def test_a_page_is_never_larger_than_allowed(house: House) -> None:
    person = house.end_user("jo")
    for _ in range(3):
        house.connection(person)
    assert len(house.connections.page(ConnectionFilters(), limit=0).items) == 1
    assert len(house.connections.page(ConnectionFilters(), limit=10**9).items) == 3


# --- a person's own ---------------------------------------------------------------------------------


def test_a_person_sees_their_own_with_what_needs_attention_first(house: House) -> None:
    jo, sam = house.end_user("jo"), house.end_user("sam")
    fine = house.connection(jo, health="ok", checked_at=START)
    ended = house.connection(jo, disconnected_at=START)
    broken = house.connection(jo, health="error", checked_at=START)
    pending = house.connection(jo, import_state=ImportState.PENDING)
    house.connection(sam)
    house.connection(jo, disconnected_at=START - timedelta(days=30))
    seen = [view.ref for view in house.connections.of_person(jo, link_id=None)]
    assert seen == [broken, pending, fine, ended]


def test_a_link_shows_only_what_it_connected(house: House) -> None:
    link = house.links.create(LinkRequest("jo"), created_by="cli")
    link_id = house.value(sa.select(Link.id).where(Link.public_id == link.id))
    jo = house.value(sa.select(Link.end_user_id))
    house.connection(jo)
    mine = house.connection(jo)
    assert house.connections.of_person(jo, link_id=link_id) == []
    house.spend(link_id, mine)
    assert [view.ref for view in house.connections.of_person(jo, link_id=link_id)] == [mine]


# --- asking again -----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [ImportState.PARKED, ImportState.HELD, ImportState.PENDING])
def test_asking_again_arms_the_import_and_says_who_asked(house: House, state: ImportState) -> None:
    held = {"import_error": "sequin_refused", "grant_sealed": b"sealed"}
    ref = house.connection(house.end_user("jo"), import_state=state, **held)
    assert house.connections.find(ref).can_retry
    house.connections.retry(ref, actor=STAFF)
    view = house.connections.find(ref)
    assert view.status is Status.PENDING
    assert [job.subject_id for job in house.jobs.lease(["import"])] == [house.key_of(ref)]
    assert house.audited() == [("operator", "sam@example.com", "connection.retry", ref)]


def test_an_import_that_arrived_is_left_alone(house: House) -> None:
    ref = house.connection(house.end_user("jo"))
    house.connections.retry(ref, actor=STAFF)
    assert not house.connections.find(ref).can_retry
    assert house.value(sa.select(Job.id)) is None
    assert house.audited() == []


@pytest.mark.parametrize("how", ["disconnected_at", "revoked_at"])
def test_what_has_ended_is_not_imported_again(house: House, how: str) -> None:
    ref = house.connection(house.end_user("jo"), import_state=ImportState.PARKED, **{how: START})
    assert not house.connections.find(ref).can_retry
    with pytest.raises(ConnectionEnded):
        house.connections.retry(ref, actor=STAFF)
    assert house.value(sa.select(Job.id)) is None


# --- checks and drift -----------------------------------------------------------------------------------


def test_a_check_can_be_asked_for(house: House) -> None:
    ref = house.connection(house.end_user("jo"))
    house.connections.check(ref)
    assert house.asked_for() == {"verify", "probe"}


def test_a_connection_that_ended_is_not_checked(house: House) -> None:
    ref = house.connection(house.end_user("jo"), disconnected_at=house.clock.now())
    with pytest.raises(ConnectionEnded):
        house.connections.check(ref)


def test_drift_is_cured_by_importing_again(house: House) -> None:
    drifted = {"import_state": "imported", "drift": "credential_missing", "health": "error", "health_note": "Gone."}
    ref = house.connection(house.end_user("jo"), grant_sealed=b"sealed", **drifted)
    assert house.connections.find(ref).can_retry
    house.connections.retry(ref, actor=STAFF)
    found = house.connections.find(ref)
    assert (found.status, found.hand_off.drift) == (Status.PENDING, None)
    assert house.value(sa.select(Job.kind)) == "import"


def test_an_import_is_not_promised_again_once_its_token_was_erased(house: House) -> None:
    drifted = {"import_state": "imported", "drift": "credential_missing", "health": "error", "health_note": "Gone."}
    ref = house.connection(house.end_user("jo"), **drifted)
    assert not house.connections.find(ref).can_retry
    with pytest.raises(TokenErased):
        house.connections.retry(ref, actor=STAFF)
    found = house.connections.find(ref)
    assert (found.status, found.hand_off.drift) == (Status.ERROR, "credential_missing")
    assert house.value(sa.select(Job.kind)) is None


def test_what_needs_no_token_can_always_be_imported_again(database_url: str) -> None:
    with open_house(database_url, apps={"github": github_app()}) as house:
        drifted = {"app_key": "github", "provider": "github", "kind": "github_app", "drift": "credential_missing"}
        ref = house.connection(house.end_user("jo"), account_facts={"installation_id": 9}, **drifted)
        assert house.connections.find(ref).can_retry
        house.connections.retry(ref, actor=STAFF)
        assert house.value(sa.select(Job.kind)) == "import"
