"""Leaving for an OpenID provider and coming back, once, in the same browser; and who somebody is here."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import responses
import sqlalchemy as sa

from broker import operators
from broker.app import build_services
from broker.callback import CallbackAnswer
from broker.errors import (
    BrokerError,
    EndUserErased,
    IdentityUnproven,
    IdentityUnusable,
    IssuerMismatch,
    OtherBrowser,
    SignInDenied,
    SignInExpired,
    StateUnknown,
    TooManyFlows,
)
from broker.journal import Browser
from broker.models import EndUser, Operator, PendingSignIn, Role
from broker.operators import OperatorDisabled, OperatorEmailTaken, OperatorNotPermitted
from broker.secret import Secret
from broker.services import Services
from broker.settings import PeopleSignIn
from broker.sign_ins import LIFE, MOST_PENDING, SignIns, role_of
from broker.throttle import SignInThrottled
from tests.house import House, open_house
from tests.openid import CODE, ISSUER, CannedProvider, people, staff

HERE = Browser(Secret("browser-one"))
ELSEWHERE = Browser(Secret("browser-two"))
ADDRESS = "192.0.2.1"
PASSWORD = Secret("correct horse battery staple")


@dataclass
class Doors:
    """Both doors of one deployment, and the provider behind them."""

    house: House
    services: Services
    there: CannedProvider

    @property
    def people(self) -> SignIns:
        assert self.services.people_sign_ins is not None
        return self.services.people_sign_ins

    @property
    def operators(self) -> SignIns:
        assert self.services.operator_sign_ins is not None
        return self.services.operator_sign_ins

    def leave(self, door: SignIns, browser: Browser = HERE, **more: Any) -> CallbackAnswer:
        """Leave and agree; returns what the provider sends the browser back with."""
        asked = self.there.consent(door.begin(browser, ADDRESS, **more))
        return CallbackAnswer(Secret(asked["state"]), Secret(CODE), None, "", None)

    def come(self, door: SignIns, **claims: Any) -> int:
        """Leave and come back as somebody with these claims."""
        answer = self.leave(door)
        self.there.claims = claims
        return door.complete(answer, HERE, ADDRESS).key


@pytest.fixture(params=[(people(), staff())])
def doors(request: pytest.FixtureRequest, database_url: str) -> Iterator[Doors]:
    for_people, for_staff = request.param
    with (
        open_house(database_url, sign_in=for_people, operators_sign_in=for_staff) as house,
        responses.RequestsMock(assert_all_requests_are_fired=False) as canned,
    ):
        services = build_services(house.settings, house.database, house.clock)
        yield Doors(house, services, CannedProvider(house.clock).listen(canned))


def configured(for_people: PeopleSignIn) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("doors", [(for_people, staff())], indirect=True)


def failures(doors: Doors) -> list[int]:
    with doors.house.database.read() as connection:
        return list(connection.execute(sa.text("SELECT failures FROM sign_in_throttles")).scalars())


# --- leaving and coming back ------------------------------------------------------------------------------


def test_a_person_comes_back_as_who_they_are(doors: Doors) -> None:
    answer = doors.leave(doors.people, onward="/connections/ABC")
    doors.there.claims = {"email": "jo@example.com", "name": "Jo Lind"}
    back = doors.people.complete(answer, HERE, ADDRESS)
    assert back.onward == "/connections/ABC"
    with doors.house.database.read() as connection:
        row = connection.execute(sa.select(EndUser).where(EndUser.id == back.key)).one()
    assert (row.external_id, row.email, row.name) == ("u-1", "jo@example.com", "Jo Lind")
    assert doors.house.audited() == [("end_user", "u-1", "end_user.signed_in", "u-1")]
    assert doors.come(doors.people) == back.key


def test_nothing_that_is_kept_meanwhile_can_be_read(doors: Doors) -> None:
    url = doors.people.begin(HERE, ADDRESS)
    asked = doors.there.consent(url)
    with doors.house.database.read() as connection:
        row = connection.execute(sa.select(PendingSignIn)).one()
    for secret in (asked["state"], asked["nonce"], HERE.secret.reveal()):
        assert secret not in str(row)


def test_a_callback_counts_once(doors: Doors) -> None:
    answer = doors.leave(doors.people)
    doors.people.complete(answer, HERE, ADDRESS)
    with pytest.raises(StateUnknown):
        doors.people.complete(answer, HERE, ADDRESS)
    assert len(doors.there.forms) == 1


def test_of_many_callbacks_at_once_one_counts(doors: Doors) -> None:
    answer = doors.leave(doors.people)

    def arrive(_: int) -> str:
        try:
            doors.people.complete(answer, HERE, ADDRESS)
        except BrokerError as failure:
            return failure.code
        return "signed in"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(arrive, range(8)))
    assert sorted(outcomes) == ["signed in"] + ["state_unknown"] * 7
    assert len(doors.there.forms) == 1


def test_a_callback_in_another_browser_changes_nothing(doors: Doors) -> None:
    answer = doors.leave(doors.people)
    for browser in (ELSEWHERE, None):
        with pytest.raises(OtherBrowser):
            doors.people.complete(answer, browser, ADDRESS)
    assert doors.there.forms == []
    assert doors.people.complete(answer, HERE, ADDRESS).key


def test_a_code_is_of_no_use_with_anybody_elses_state(doors: Doors) -> None:
    """An attacker's code in the victim's own callback: the verifier and the nonce are the victim's."""
    theirs = doors.leave(doors.people, ELSEWHERE)
    stolen = doors.there.nonce
    mine = doors.leave(doors.people, HERE)
    doors.there.claims = {"sub": "attacker", "nonce": stolen}
    injected = CallbackAnswer(mine.state, theirs.code, None, "", None)
    with pytest.raises(IdentityUnproven, match="nonce"):
        doors.people.complete(injected, HERE, ADDRESS)
    assert doors.house.value(sa.select(sa.func.count()).select_from(EndUser)) == 0


def test_a_state_of_one_door_opens_no_other(doors: Doors) -> None:
    answer = doors.leave(doors.people)
    with pytest.raises(StateUnknown):
        doors.operators.complete(answer, HERE, ADDRESS)
    assert doors.people.complete(answer, HERE, ADDRESS).key


def test_an_answer_of_another_issuer_is_refused_and_the_right_one_still_counts(doors: Doors) -> None:
    answer = doors.leave(doors.people)
    mixed_up = CallbackAnswer(answer.state, answer.code, None, "", "https://evil.example/")
    with pytest.raises(IssuerMismatch):
        doors.people.complete(mixed_up, HERE, ADDRESS)
    assert doors.there.forms == []
    assert doors.people.complete(answer, HERE, ADDRESS).key


def test_who_says_no_is_told_so_and_nothing_is_exchanged(doors: Doors) -> None:
    answer = doors.leave(doors.people)
    with pytest.raises(SignInDenied):
        doors.people.complete(CallbackAnswer(answer.state, None, "access_denied", "", None), HERE, ADDRESS)
    assert doors.there.forms == []
    with pytest.raises(StateUnknown):
        doors.people.complete(answer, HERE, ADDRESS)


def test_who_comes_back_too_late_begins_again(doors: Doors) -> None:
    answer = doors.leave(doors.people)
    doors.house.clock.advance(LIFE.total_seconds())
    with pytest.raises(SignInExpired):
        doors.people.complete(answer, HERE, ADDRESS)
    assert doors.there.forms == []


def test_what_was_never_ended_is_forgotten(doors: Doors) -> None:
    doors.leave(doors.people)
    doors.house.clock.advance(2 * 86_400)
    assert doors.services.purge.purge()["sign_ins"] == 1


# --- too many ---------------------------------------------------------------------------------------------


def test_one_browser_begins_only_so_many(doors: Doors) -> None:
    for _ in range(MOST_PENDING):
        doors.people.begin(HERE, ADDRESS)
    with pytest.raises(TooManyFlows):
        doors.people.begin(HERE, ADDRESS)
    assert doors.people.begin(ELSEWHERE, ADDRESS)


def test_sign_ins_that_fail_are_counted_and_those_that_do_not_are_not(doors: Doors) -> None:
    doors.come(doors.people)
    assert failures(doors) == [0]
    for number in range(20):
        doors.operators.begin(Browser(Secret(f"browser-{number}")), "198.51.100.1")
    with pytest.raises(SignInThrottled):
        doors.operators.begin(HERE, "198.51.100.1")
    assert doors.operators.begin(HERE, "198.51.100.2")
    doors.house.clock.advance(901)
    assert doors.operators.begin(HERE, "198.51.100.1")


def test_a_throttled_sign_in_asks_the_provider_nothing(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sign_ins.MOST_FAILURES", dict.fromkeys(("people", "operators"), 0))
    with pytest.raises(SignInThrottled):
        doors.people.begin(HERE, ADDRESS)
    assert doors.there.asked == []


# --- people -----------------------------------------------------------------------------------------------


@configured(people(id_claim="employee_number"))
def test_the_end_users_id_comes_from_the_claim_that_is_configured(doors: Doors) -> None:
    doors.come(doors.people, employee_number="4711")
    doors.come(doors.people, employee_number=4711)
    with doors.house.database.read() as connection:
        assert list(connection.execute(sa.select(EndUser.external_id)).scalars()) == ["4711"]


@configured(people(id_claim="employee_number"))
def test_an_id_that_is_none_signs_nobody_in(doors: Doors) -> None:
    for value in (None, "", "  ", "two\nlines", "x" * 256, True, ["4711"], "nul\x00"):
        with pytest.raises(IdentityUnusable):
            doors.come(doors.people, employee_number=value)
    assert doors.house.value(sa.select(sa.func.count()).select_from(EndUser)) == 0


@configured(people(id_claim="email"))
def test_an_e_mail_is_an_id_only_once_it_is_proven(doors: Doors) -> None:
    for verified in (None, False, "true"):
        with pytest.raises(IdentityUnusable):
            doors.come(doors.people, email="jo@example.com", email_verified=verified)
    assert doors.come(doors.people, email="jo@example.com", email_verified=True)


def test_an_e_mail_that_is_said_to_be_unproven_is_not_shown(doors: Doors) -> None:
    doors.come(doors.people, email="ceo@example.com", email_verified=False, name=7)
    assert doors.house.value(sa.select(EndUser.email)) is None


def test_nobody_signs_in_while_being_forgotten(doors: Doors) -> None:
    doors.house.end_user("u-1", erasure_asked_at=doors.house.clock.now())
    with pytest.raises(EndUserErased):
        doors.come(doors.people)


# --- operators --------------------------------------------------------------------------------------------

SAM = {"email": "Sam@Example.com", "email_verified": True}


def operator(doors: Doors) -> Any:
    with doors.house.database.read() as connection:
        return connection.execute(sa.select(Operator)).one()


def test_whoever_has_a_role_at_the_provider_becomes_an_operator(doors: Doors) -> None:
    key = doors.come(doors.operators, **SAM, roles=["something", "operator", "viewer"])
    row = operator(doors)
    assert (row.id, row.email, row.role) == (key, "sam@example.com", "operator")
    assert (row.issuer, row.subject) == (ISSUER, "u-1")
    assert [entry[2] for entry in doors.house.audited()] == ["operator.created", "operator.signed_in"]


def test_the_role_is_the_providers_every_time(doors: Doors) -> None:
    key = doors.come(doors.operators, **SAM, roles="admin")
    assert doors.come(doors.operators, **SAM, roles=["viewer"]) == key
    assert operator(doors).role == "viewer"
    assert "operator.role_changed" in [entry[2] for entry in doors.house.audited()]


def test_who_has_no_role_is_refused_by_name_and_kept_nowhere(doors: Doors) -> None:
    claims: tuple[object, ...] = (None, [], ["else"], "admins", {"admin": True}, [["admin"]], 1)
    for roles in claims:
        with pytest.raises(OperatorNotPermitted) as raised:
            doors.come(doors.operators, **SAM, roles=roles)
        assert raised.value.shown == "sam@example.com"
    assert doors.services.operators.list() == ()
    assert {entry[2] for entry in doors.house.audited()} == {"operator.sign_in_failed"}
    assert failures(doors) == [len(claims)]


def test_who_loses_the_role_is_signed_out_everywhere(doors: Doors) -> None:
    token = doors.services.sessions.open_operator(doors.come(doors.operators, **SAM, roles="admin"))
    with pytest.raises(OperatorNotPermitted):
        doors.come(doors.operators, **SAM, roles=[])
    assert doors.services.sessions.find(token.reveal()) is None


def test_a_disabled_operator_stays_out_whatever_the_provider_says(doors: Doors) -> None:
    doors.come(doors.operators, **SAM, roles="admin")
    doors.services.operators.disable("sam@example.com")
    with pytest.raises(OperatorDisabled):
        doors.come(doors.operators, **SAM, roles="admin")


def test_who_proves_to_own_the_address_of_an_operator_is_that_operator(doors: Doors) -> None:
    made = doors.services.operators.create("sam@example.com", PASSWORD, Role.ADMIN)
    assert doors.come(doors.operators, **SAM, roles="admin") == made.id
    assert doors.services.operators.sign_in("sam@example.com", PASSWORD, ADDRESS) == made.id
    (listed,) = doors.services.operators.list()
    assert listed.has_openid


def test_an_unproven_address_takes_over_nobody(doors: Doors) -> None:
    doors.services.operators.create("sam@example.com", PASSWORD, Role.ADMIN)
    for verified in (None, False, "true", 1):
        with pytest.raises(OperatorEmailTaken):
            doors.come(doors.operators, email="sam@example.com", email_verified=verified, roles="viewer")
    assert (operator(doors).role, operator(doors).subject) == ("admin", None)


def test_another_account_with_the_same_address_takes_over_nobody_until_they_are_untied(doors: Doors) -> None:
    key = doors.come(doors.operators, **SAM, roles="admin")
    with pytest.raises(OperatorEmailTaken):
        doors.come(doors.operators, **SAM, sub="u-2", roles="admin")
    doors.services.operators.unlink("sam@example.com")
    assert doors.come(doors.operators, **SAM, sub="u-2", roles="admin") == key


def test_an_operator_of_another_issuer_is_told_and_the_same_once_untied(doors: Doors) -> None:
    key = doors.come(doors.operators, **SAM, roles="admin")
    doors.house.run(sa.update(Operator).values(issuer="https://id-of-before.example"))
    with pytest.raises(OperatorEmailTaken) as refused:
        doors.come(doors.operators, **SAM, roles="admin")
    assert "broker operator unlink" in refused.value.cure
    doors.services.operators.unlink("sam@example.com")
    assert doors.come(doors.operators, **SAM, roles="admin") == key
    assert operator(doors).issuer == ISSUER


def test_nobody_signs_in_by_password_who_never_had_one(doors: Doors) -> None:
    doors.come(doors.operators, **SAM, roles="admin")
    assert operator(doors).password_hash.startswith("$argon2id$")


def test_an_operator_is_still_the_same_under_another_address(doors: Doors) -> None:
    key = doors.come(doors.operators, **SAM, roles="admin")
    assert doors.come(doors.operators, email="sam.lee@example.com", email_verified=True, roles="admin") == key
    assert operator(doors).email == "sam.lee@example.com"


def test_an_operator_goes_by_no_other_address_than_one_that_is_proven(doors: Doors) -> None:
    key = doors.come(doors.operators, **SAM, roles="viewer")
    for verified in (None, False, "true"):
        assert doors.come(doors.operators, email="boss@example.com", email_verified=verified, roles="viewer") == key
    assert operator(doors).email == "sam@example.com"
    assert "boss@example.com" not in repr(doors.house.audited())
    assert doors.services.operators.create("boss@example.com", PASSWORD, Role.ADMIN).id != key


def test_who_comes_by_two_tabs_at_once_is_one_operator(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(*given: Any, **identity: str) -> None:
        insert(*given, **identity)

    insert = vars(operators)["_insert"]
    monkeypatch.setattr(operators, "_insert", overtaken)
    key = doors.come(doors.operators, **SAM, roles="viewer")
    assert (operator(doors).id, operator(doors).subject) == (key, "u-1")


def test_an_operator_who_was_disabled_is_tied_to_no_account(doors: Doors) -> None:
    doors.services.operators.create("sam@example.com", PASSWORD, Role.ADMIN)
    doors.services.operators.disable("sam@example.com")
    with pytest.raises(OperatorDisabled):
        doors.come(doors.operators, **SAM, roles="admin")
    assert operator(doors).subject is None
    assert "operator.linked" not in [entry[2] for entry in doors.house.audited()]


def test_an_address_that_somebody_else_has_is_not_taken_over(doors: Doors) -> None:
    doors.come(doors.operators, **SAM, roles="admin")
    doors.services.operators.create("kim@example.com", PASSWORD, Role.VIEWER)
    doors.come(doors.operators, email="kim@example.com", email_verified=True, roles="admin")
    assert sorted((one.email, one.role) for one in doors.services.operators.list()) == [
        ("kim@example.com", "viewer"), ("sam@example.com", "admin")
    ]  # fmt: skip


def test_an_operator_needs_an_address(doors: Doors) -> None:
    for email in (None, 7, "", "no address", "two\n@lines"):
        with pytest.raises(IdentityUnusable):
            doors.come(doors.operators, email=email, roles="admin")
    assert doors.services.operators.list() == ()


def test_the_highest_role_counts() -> None:
    config = staff(role_claim="groups", viewer=("all",), admin=("cn=admins,ou=acme",))
    assert role_of(config, {"groups": ["all", "cn=admins,ou=acme"]}) is Role.ADMIN
    assert role_of(config, {"groups": "all"}) is Role.VIEWER
    assert role_of(config, {"groups": "operator"}) is Role.OPERATOR
    assert role_of(config, {"roles": "operator"}) is None


# --- the doctor -------------------------------------------------------------------------------------------


def told_by_the_doctor(doors: Doors) -> list[tuple[str | None, str, str]]:
    found = doors.services.doctor.examine().checks
    return [
        (check.app, check.state.value, f"{check.sentence} {check.fix}") for check in found if check.name == "sign_in"
    ]


def test_the_doctor_asks_what_a_sign_in_asks(doors: Doors) -> None:
    assert {(where, state) for where, state, _ in told_by_the_doctor(doors)} == {
        ("sign_in", "pass"), ("operators.sign_in", "pass")
    }  # fmt: skip
    doors.there.discovery = {"id_token_signing_alg_values_supported": ["ES256"]}
    assert "Set signing_algorithm under [sign_in]" in " ".join(text for _, _, text in told_by_the_doctor(doors))
    doors.there.discovery = {"code_challenge_methods_supported": ["plain"]}
    assert {state for _, state, _ in told_by_the_doctor(doors)} == {"warn", "pass"}
    doors.there.discovery = {"issuer": "https://id.acme.example"}
    _, state, text = told_by_the_doctor(doors)[0]
    assert state == "fail"
    assert "the provider calls itself 'https://id.acme.example'" in text
    assert "Compare issuer, client id" in text
    addresses = {address.address for address in doors.services.doctor.examine().addresses}
    assert {f"http://localhost:8000{path}" for path in ("/sign-in/callback", "/ops/sign-in/callback")} <= addresses
