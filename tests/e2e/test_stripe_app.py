"""Stripe Apps and Stripe's webhooks over real HTTP: connected, refused, refreshed, uninstalled and installed again."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import sqlalchemy as sa

from tests.e2e.world import Person, World, command, eventually

TOKEN = ("POST", "/stripe/v1/oauth/token")
APPS = {"stripe": "Stripe is connected", "stripe_app": "Stripe App is connected"}


def status(world: World, end_user: str) -> str:
    (found,) = world.connections(end_user)
    return str(found["status"])


def stored(world: World) -> list[tuple[str, str | None]]:
    with world.database() as connection:
        query = "SELECT delivery_id, outcome FROM provider_events ORDER BY id"
        return [(row[0], row[1]) for row in connection.execute(sa.text(query))]


def processed(world: World, delivery_id: str) -> str:
    """Wait until an event was acted on and return what came of it."""
    return eventually(lambda: dict(stored(world)).get(delivery_id))


def emit(world: World, **order: object) -> int:
    """Let Stripe send a webhook and return what the broker answered."""
    return int(world.control("emit", **order)["status"])


def connected(world: World, person: Person, end_user: str, app: str, account: str) -> dict[str, Any]:
    world.control("consent", auto="allow", account=account)
    page = person.connect(world.link(end_user), app)
    assert APPS[app] in page.text
    return world.verified(end_user)


# --- connecting -----------------------------------------------------------------------------------------


def test_an_installed_app_becomes_a_credential_and_its_token_is_kept_fresh(
    world: World, person: Person, end_user: str
) -> None:
    connection = connected(world, person, end_user, "stripe_app", f"acct_1Fresh{end_user[7:]}")

    (credential,) = world.credentials()
    secrets = json.loads((world.folder / "sandbox.json").read_text())
    assert credential["oauth_app_id"] == secrets["sequin_stripe_apps_app_id"]
    assert connection["scopes"] == ["stripe_apps"]
    first = credential["properties"]["secret"]
    assert set(credential["properties"]) == {"kind", "secret", "test", "name", "stripe_user_id"}

    # The hour is nearly over.
    with world.database() as database:
        database.execute(sa.text("UPDATE jobs SET due_at = updated_at WHERE kind = 'refresh' AND state = 'waiting'"))

    def fresh() -> dict[str, Any] | None:
        (found,) = world.credentials()
        return found if found["properties"]["secret"] != first else None

    renewed = eventually(fresh)
    state = world.control("state")
    (family,) = [one for one in state["families"] if one["account"] == connection["account"]["id"]]
    assert (family["refreshes"], family["reuses"]) == (1, 0)
    (grant,) = [one for one in state["grants"] if one["account"] == connection["account"]["id"]]
    assert grant["access_token"] == renewed["properties"]["secret"]
    assert renewed["id"] == credential["id"]
    assert world.connections(end_user)[0]["ref"] == connection["ref"]


def test_a_person_who_says_no_is_told_so(world: World, person: Person, end_user: str) -> None:
    world.control("consent", auto="deny")
    page = person.connect(world.link(end_user), "stripe_app")
    assert world.flow_state(page.url) == "failed"
    assert not world.requests_to(*TOKEN)
    assert world.connections(end_user) == []


def test_a_wrong_code_ends_the_attempt(world: World, person: Person, end_user: str) -> None:
    callback = urlsplit(person.come_back(world.link(end_user), "stripe_app"))
    query = "&".join("code=ac_wrong" if part.startswith("code=") else part for part in callback.query.split("&"))
    page = person.follow(person.get(urlunsplit(callback._replace(query=query))))
    assert world.flow_state(page.url) == "failed"
    assert [entry["status"] for entry in world.requests_to(*TOKEN)] == [400]


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        ({"on": "stripe.token", "fault": "status", "status": 200, "body": '{"error": "invalid_grant"}'}, "failed"),
        ({"on": "stripe.token", "fault": "wrong_types"}, "failed"),
        ({"on": "stripe.token", "fault": "status", "status": 200, "body": '{"token_type": "bearer"}'}, "failed"),
        ({"on": "stripe.token", "fault": "status", "status": 503}, "interrupted"),
        ({"on": "stripe.account", "fault": "status", "status": 403}, "failed"),
        ({"on": "stripe.account", "fault": "wrong_types", "when": "after"}, "failed"),
    ],
    ids=["200-with-error", "wrong-types", "no-token", "5xx", "no-permission", "another-account"],
)
def test_whatever_stripe_answers_is_told_and_asked_once(
    world: World, person: Person, end_user: str, fault: dict[str, Any], state: str
) -> None:
    callback = person.come_back(world.link(end_user), "stripe_app")
    world.control("faults", **fault, times=9)
    page = person.follow(person.get(callback))
    assert world.flow_state(page.url) == state
    assert len(world.requests_to(*TOKEN)) == 1
    assert world.connections(end_user) == []


# --- webhooks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", sorted(APPS))
def test_removed_at_stripe_is_known_at_once_and_can_be_connected_again(
    world: World, person: Person, end_user: str, app: str
) -> None:
    account, event = f"acct_1Gone{end_user[7:]}", f"evt_gone{end_user[7:]}"
    connection = connected(world, person, end_user, app, account)

    assert emit(world, provider=app, id=event, times=3) == 200

    assert processed(world, event) == "revoked: 1"
    assert status(world, end_user) == "revoked"
    assert [one for one in stored(world) if one[0] == event] == [(event, "revoked: 1")]
    with world.database() as database:
        held = sa.text("SELECT grant_sealed FROM connections WHERE ref = :ref")
        assert database.execute(held, {"ref": connection["ref"]}).scalar() is None

    again = Person(world).connect(world.link(end_user), app)
    assert APPS[app] in again.text
    assert world.verified(end_user)["ref"] == connection["ref"]
    assert eventually(lambda: status(world, end_user) == "ok")
    # What was sent before the reconnect, and comes only now, is the old story.
    late = f"{event}late"
    assert emit(world, provider=app, account=account, id=late, effect=False, created=1_700_000_000) == 200
    assert processed(world, late) == "connected again since: 1"
    assert status(world, end_user) == "ok"


def test_only_stripe_is_believed_and_only_about_what_it_says(world: World, person: Person, end_user: str) -> None:
    account = f"acct_1Stays{end_user[7:]}"
    connected(world, person, end_user, "stripe_app", account)
    order: dict[str, Any] = {"provider": "stripe_app", "account": account, "effect": False}
    before = stored(world)

    assert emit(world, **order, unsigned=True) == 401
    assert emit(world, **order, secret="whsec_guessed") == 401
    assert emit(world, **order, timestamp=1_700_000_000) == 401
    assert emit(world, **order, payload={"id": "evt_x"}) == 400
    assert stored(world) == before

    others: list[dict[str, Any]] = [{"livemode": True}, {"account": "acct_1Nobody"}, {"type": "invoice.paid"}]
    for number, more in enumerate(others):
        event = f"evt_{number}{end_user[7:]}"
        assert emit(world, **(order | more | {"id": event})) == 200
        assert processed(world, event) in ("no connection of ours", "means nothing here")
    assert status(world, end_user) in ("ok", "unknown")


# --- what Stripe does not let us do ---------------------------------------------------------------------


def test_an_installed_app_stays_after_a_disconnect_and_the_person_is_told(
    world: World, person: Person, end_user: str
) -> None:
    connection = connected(world, person, end_user, "stripe_app", f"acct_1Keeps{end_user[7:]}")
    page = person.get(f"/connections/{connection['ref']}/disconnect")
    assert "the installed app" in page.text
    person.follow(person.press(page, f"/connections/{connection['ref']}/disconnect"))
    eventually(lambda: not world.credentials(), within=60)
    assert status(world, end_user) == "disconnected"


def test_an_account_that_another_platform_controls_is_left_to_its_owner(
    world: World, person: Person, end_user: str
) -> None:
    connection = connected(world, person, end_user, "stripe", "acct_1HarbourMarket00")
    assert world.api("DELETE", f"connections/{connection['ref']}").status_code == 202

    def told() -> bool:
        (found,) = world.connections(end_user)
        return "Stripe keeps the access until you remove it there" in str(found["note"])

    eventually(told)


def grants(world: World) -> list[dict[str, Any]]:
    """Return what the doctor says of grants that cannot be imported."""
    report = json.loads(command("doctor", "--json", environment=world.environment).stdout)
    return [check for check in report["checks"] if check["name"] == "grants"]


def test_connect_without_a_token_is_parked_and_the_doctor_knows_the_way_out(
    world: World, person: Person, end_user: str
) -> None:
    world.control("options", stripe_tokens=False)
    world.control("consent", auto="allow", account=f"acct_1Bare{end_user[7:]}")
    page = person.connect(world.link(end_user), "stripe")
    assert APPS["stripe"] in page.text
    eventually(lambda: status(world, end_user) == "import_failed")
    assert world.credentials() == []
    assert ["use the provider stripe_app" in one["sentence"] for one in grants(world)] == [True]
    # Once Stripe gives tokens, connecting again is all it takes.
    world.control("options", stripe_tokens=True)
    assert APPS["stripe"] in Person(world).connect(world.link(end_user), "stripe").text
    world.verified(end_user)
    assert grants(world) == []
