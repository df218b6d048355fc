"""Sessions: rows with limits, ended here and not in the browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from broker.audit import Actor
from broker.errors import EndUserErased
from broker.models import BrowserSession, EndUser, Operator, Role
from broker.operators import Operators, OperatorUnknown
from broker.secret import Secret
from broker.sessions import Sessions
from tests.house import START, House, open_house


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def sessions(house: House) -> Sessions:
    return Sessions(house.database, house.clock)


def staff(house: House) -> int:
    return house.insert(Operator, email="sam@example.com", role=Role.VIEWER, password_hash="-", created_at=START)


def test_an_end_users_cookie_finds_the_person(house: House, sessions: Sessions) -> None:
    jo = house.end_user("jo")
    token = sessions.open_end_user(None, jo, None)
    found = sessions.find(token.reveal())
    assert found is not None
    assert (found.end_user_id, found.link_id, found.operator) == (jo, None, None)
    assert token.reveal() not in str(house.value(sa.select(BrowserSession.id_hash)))


def test_a_session_can_open_in_the_callers_transaction(house: House, sessions: Sessions) -> None:
    jo = house.end_user("jo")
    with house.database.write() as connection:
        token = sessions.open_end_user(connection, jo, None)
        connection.rollback()
    assert sessions.find(token.reveal()) is None


def test_nobody_who_is_being_forgotten_is_signed_in(house: House, sessions: Sessions) -> None:
    jo = house.end_user("jo", erasure_asked_at=START)
    for gone in (jo, jo + 1):
        with pytest.raises(EndUserErased):
            sessions.open_end_user(None, gone, None)
    assert house.value(sa.select(BrowserSession.id_hash)) is None


def test_an_erasure_waits_for_a_session_that_is_being_opened(house: House, sessions: Sessions) -> None:
    """Then it finds it, and ends it."""
    jo = house.end_user("jo")
    with house.database.write() as connection:
        sessions.open_end_user(connection, jo, None)
        if connection.dialect.name == "postgresql":
            # SQLite has one writer at a time.
            free = sa.select(EndUser.id).where(EndUser.id == jo).with_for_update(skip_locked=True)
            with house.database.engine.connect() as other:
                assert other.execute(free).all() == []


def test_every_session_has_an_id_of_its_own(house: House, sessions: Sessions) -> None:
    jo = house.end_user("jo")
    assert sessions.open_end_user(None, jo, None) != sessions.open_end_user(None, jo, None)


@pytest.mark.parametrize("token", [None, "", "nope", "a\x00b", "\ud800"])
def test_an_unknown_cookie_finds_nobody(house: House, sessions: Sessions, token: str | None) -> None:
    assert sessions.find(token) is None
    sessions.end(token)


def test_an_end_users_session_ends_after_thirty_minutes_whatever_happens(house: House, sessions: Sessions) -> None:
    token = sessions.open_end_user(None, house.end_user("jo"), None).reveal()
    for _ in range(29):
        house.clock.advance(60)
        assert sessions.find(token) is not None
    house.clock.advance(60)
    assert sessions.find(token) is None


def test_an_operators_session_lives_by_being_used_but_not_for_ever(house: House, sessions: Sessions) -> None:
    token = sessions.open_operator(staff(house)).reveal()
    for _ in range(28):
        house.clock.advance(25 * 60)
        assert sessions.find(token) is not None
    house.clock.advance(25 * 60)
    assert sessions.find(token) is None


def test_an_idle_operator_is_signed_out(house: House, sessions: Sessions) -> None:
    token = sessions.open_operator(staff(house)).reveal()
    house.clock.advance(30 * 60)
    assert sessions.find(token) is None


def test_use_is_written_at_most_once_a_minute(house: House, sessions: Sessions) -> None:
    token = sessions.open_operator(staff(house)).reveal()
    house.clock.advance(59)
    sessions.find(token)
    assert house.value(sa.select(BrowserSession.seen_at)) == START
    house.clock.advance(1)
    sessions.find(token)
    assert house.value(sa.select(BrowserSession.seen_at)) == house.clock.now()


def test_signing_out_ends_the_session_here_and_is_recorded(house: House, sessions: Sessions) -> None:
    token = sessions.open_operator(staff(house)).reveal()
    sessions.end(token)
    sessions.end(token)
    assert sessions.find(token) is None
    assert [entry[2] for entry in house.audited()] == ["operator.signed_out"]


def test_all_of_an_operators_sessions_end_together(house: House, sessions: Sessions) -> None:
    who = staff(house)
    tokens = [sessions.open_operator(who).reveal() for _ in range(3)]
    person = sessions.open_end_user(None, house.end_user("jo"), None).reveal()
    email = house.value(sa.select(Operator.email))
    assert sessions.end_all(email, actor=Actor("operator", "kim@example.com")) == 3
    assert [sessions.find(token) for token in tokens] == [None] * 3
    assert sessions.find(person) is not None
    assert house.audited()[-1] == ("operator", "kim@example.com", "operator.signed_out_everywhere", email)
    with pytest.raises(OperatorUnknown):
        sessions.end_all("nobody@example.com")


def test_a_session_knows_whether_the_person_signed_in(house: House, sessions: Sessions) -> None:
    who = house.end_user("jo")
    came, signed_in = sessions.open_end_user(None, who, None), sessions.open_end_user(None, who, None, by_sign_in=True)
    found = [sessions.find(token.reveal()) for token in (came, signed_in)]
    assert [one.by_sign_in for one in found if one is not None] == [False, True]


def test_a_disabled_operator_is_out_at_once(house: House, sessions: Sessions) -> None:
    operators = Operators(house.database, house.clock)
    created = operators.create("sam@example.com", Secret("a long enough password"), Role.ADMIN)
    token = sessions.open_operator(created.id).reveal()
    found = sessions.find(token)
    assert found is not None
    assert found.operator is not None
    assert (found.operator.email, found.operator.role) == ("sam@example.com", Role.ADMIN)
    operators.disable("sam@example.com")
    assert sessions.find(token) is None
    # Not even a session that slips in afterwards counts.
    assert sessions.find(sessions.open_operator(created.id).reveal()) is None


def test_old_sessions_are_forgotten(house: House, sessions: Sessions) -> None:
    sessions.open_end_user(None, house.end_user("jo"), None)
    house.clock.advance(30 * 60)
    fresh = sessions.open_end_user(None, house.end_user("sam"), None).reveal()
    assert sessions.purge() == 1
    assert sessions.find(fresh) is not None
