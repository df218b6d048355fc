"""Operators: creating, disabling, signing in, and what stops guessing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from broker.models import AuditRecord, Operator, Role, SignInThrottle
from broker.operators import (
    OperatorInvalid,
    Operators,
    OperatorUnknown,
    SignInRefused,
)
from broker.secret import Secret
from broker.throttle import SignInThrottled
from tests.house import House, open_house

PASSWORD = "correct horse battery staple"
WRONG = Secret("not the password")


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def operators(house: House) -> Operators:
    return Operators(house.database, house.clock)


def create(operators: Operators, email: str = "sam@example.com", role: Role = Role.OPERATOR) -> int:
    return operators.create(email, Secret(PASSWORD), role).id


def fail(operators: Operators, email: str, address: str = "192.0.2.1") -> None:
    with pytest.raises(SignInRefused):
        operators.sign_in(email, WRONG, address)


def watch(operators: Operators, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make every password wrong and return the hashes looked at."""
    looked_at: list[str] = []

    def look(kept: str, _: Secret) -> bool:
        looked_at.append(kept)
        return False

    monkeypatch.setattr(operators, "_matches", look)
    return looked_at


def test_there_is_no_default_account(operators: Operators) -> None:
    assert operators.list() == ()
    assert not operators.exist()


def test_an_operator_signs_in_whatever_the_case_of_the_e_mail(house: House, operators: Operators) -> None:
    key = create(operators, "Sam@Example.com")
    assert operators.sign_in(" SAM@example.COM ", Secret(PASSWORD), "192.0.2.1") == key
    assert [view.email for view in operators.list()] == ["sam@example.com"]
    assert [entry[2] for entry in house.audited()] == ["operator.created", "operator.signed_in"]


def test_the_password_is_kept_as_argon2id_only(house: House, operators: Operators) -> None:
    create(operators)
    kept = house.value(sa.select(Operator.password_hash))
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    with house.database.read() as connection:
        everything = [connection.execute(sa.select(table)).all() for table in (Operator, AuditRecord)]
    assert PASSWORD not in str(everything)


@pytest.mark.parametrize(
    ("email", "password", "role"),
    [
        ("nobody", PASSWORD, "admin"),
        ("@example.com", PASSWORD, "admin"),
        ("a b@example.com", PASSWORD, "admin"),
        ("a\x00@example.com", PASSWORD, "admin"),
        ("\ud800@example.com", PASSWORD, "admin"),
        ("a@example.com", "short", "admin"),
        ("a@example.com", "", "admin"),
        ("a@example.com", "x" * 1_025, "admin"),
        ("a@example.com", "aaaaaaaaaaaa", "admin"),
        ("a@example.com", "a@example.com", "admin"),
        ("a@example.com", "abcdefgh\ud800", "admin"),
        ("a@example.com", PASSWORD, "root"),
    ],
)
def test_an_unusable_operator_is_refused(email: str, password: str, role: str) -> None:
    with open_house("sqlite://") as house, pytest.raises(OperatorInvalid):
        Operators(house.database, house.clock).create(email, Secret(password), role)


def test_an_e_mail_is_taken_once(operators: Operators) -> None:
    create(operators)
    with pytest.raises(OperatorInvalid, match="already"):
        create(operators, "SAM@example.com")


def test_wrong_unknown_and_disabled_look_alike(operators: Operators) -> None:
    create(operators)
    create(operators, "gone@example.com")
    operators.disable("gone@example.com")
    attempts = [
        ("sam@example.com", WRONG),
        ("nobody@example.com", Secret(PASSWORD)),
        ("gone@example.com", Secret(PASSWORD)),
        ("", Secret("")),
        ("a\x00b", Secret("c\x00d")),
        ("\ud800", Secret("\ud800")),
        ("sam@example.com", Secret("x" * 100_000)),
    ]
    told = set()
    for email, password in attempts:
        with pytest.raises(SignInRefused) as refused:
            operators.sign_in(email, password, "192.0.2.1")
        told.add((refused.value.code, refused.value.detail, refused.value.heading, refused.value.advice))
    assert len(told) == 1


def test_an_unknown_e_mail_costs_as_much_as_a_known_one(operators: Operators, monkeypatch: pytest.MonkeyPatch) -> None:
    create(operators)
    looked_at = watch(operators, monkeypatch)
    fail(operators, "sam@example.com")
    fail(operators, "nobody@example.com")
    assert len(looked_at) == 2
    # Same algorithm and cost; only salt and hash differ.
    assert {kept.rsplit("$", 2)[0] for kept in looked_at} == {"$argon2id$v=19$m=19456,t=2,p=1"}


def test_disabling_is_idempotent_and_recorded_once(house: House, operators: Operators) -> None:
    create(operators)
    operators.disable("sam@example.com")
    operators.disable("Sam@example.com")
    assert [entry[2] for entry in house.audited()] == ["operator.created", "operator.disabled"]
    assert not operators.exist()
    for email in ("nobody@example.com", "\ud800", "a\x00"):
        with pytest.raises(OperatorUnknown):
            operators.disable(email)


# --- the throttle -----------------------------------------------------------------------------------


def test_five_failures_close_an_e_mail_for_fifteen_minutes(house: House, operators: Operators) -> None:
    create(operators)
    for _ in range(5):
        fail(operators, "sam@example.com")
    house.clock.advance(60)
    with pytest.raises(SignInThrottled) as throttled:
        operators.sign_in("sam@example.com", Secret(PASSWORD), "198.51.100.7")
    assert (throttled.value.minutes, throttled.value.retry_after) == (14, 840)
    house.clock.advance(14 * 60)
    assert operators.sign_in("sam@example.com", Secret(PASSWORD), "198.51.100.7")


def test_an_unknown_e_mail_closes_just_the_same(operators: Operators) -> None:
    for _ in range(5):
        fail(operators, "nobody@example.com")
    with pytest.raises(SignInThrottled):
        operators.sign_in("nobody@example.com", WRONG, "192.0.2.1")


def test_the_throttle_is_shared_by_every_process(house: House, operators: Operators) -> None:
    for _ in range(5):
        fail(operators, "sam@example.com")
    with pytest.raises(SignInThrottled):
        Operators(house.database, house.clock).sign_in("sam@example.com", WRONG, "192.0.2.9")


def test_twenty_failures_close_an_address_but_no_other(operators: Operators) -> None:
    create(operators)
    for number in range(20):
        fail(operators, f"guess-{number}@example.com")
    with pytest.raises(SignInThrottled):
        operators.sign_in("sam@example.com", Secret(PASSWORD), "192.0.2.1")
    assert operators.sign_in("sam@example.com", Secret(PASSWORD), "192.0.2.2")


def test_one_ipv6_network_is_one_address(operators: Operators) -> None:
    for number in range(20):
        fail(operators, f"guess-{number}@example.com", f"2001:db8::{number:x}")
    with pytest.raises(SignInThrottled):
        operators.sign_in("sam@example.com", WRONG, "2001:db8::ffff:1")


def test_signing_in_forgives_the_e_mail_and_takes_its_own_attempt_back(house: House, operators: Operators) -> None:
    create(operators)
    for _ in range(4):
        fail(operators, "sam@example.com")
    operators.sign_in("sam@example.com", Secret(PASSWORD), "192.0.2.1")
    assert house.value(sa.select(SignInThrottle.failures)) == 4
    for _ in range(30):
        operators.sign_in("sam@example.com", Secret(PASSWORD), "198.51.100.1")


def test_attempts_made_at_once_cannot_slip_through(
    house: House, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = watch(operators, monkeypatch)

    def attempt(_: int) -> str:
        try:
            operators.sign_in("sam@example.com", WRONG, "192.0.2.1")
        except (SignInRefused, SignInThrottled) as failure:
            return failure.code
        return "in"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(24)))
    assert len(looked_at) == outcomes.count("sign_in_refused") == 5
    assert outcomes.count("sign_in_throttled") == 19


def test_a_failed_sign_in_is_recorded_without_what_was_typed(house: House, operators: Operators) -> None:
    fail(operators, "hunter2-typed-into-the-wrong-field")
    ((kind, actor, action, target),) = house.audited()
    assert (kind, action) == ("operator", "operator.sign_in_failed")
    assert "hunter2" not in actor + target
