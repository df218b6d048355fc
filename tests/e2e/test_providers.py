"""The providers with the smaller stand-ins, over real HTTP: connected, refused, ended over there, and again."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import sqlalchemy as sa

from broker.apps import OfferedApp
from broker.providers import discover as discover_providers
from broker.sandbox.stand_ins import discover
from tests.e2e.world import Person, World, eventually
from tests.providers.cases import CASES

NAMES = sorted(discover())
TOKENS = {name: ("POST", f"/{name}{stand_in.token}") for name, stand_in in discover().items()}
OFFERED = {name: OfferedApp(CASES[name].app, discover_providers()[name]) for name in NAMES}


def grants(world: World, app: str, connection: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the provider has granted for a connection's account."""
    found = world.control("state")["grants"]
    return [one for one in found if one["provider"] == app and one["account"].startswith(connection["account"]["id"])]


def due_now(world: World, kind: str) -> None:
    with world.database() as database:
        due = sa.text("UPDATE jobs SET due_at = updated_at WHERE kind = :kind AND state = 'waiting'")
        database.execute(due, {"kind": kind})


def connected(world: World, person: Person, end_user: str, app: str, account: str | None = None) -> dict[str, Any]:
    world.control("consent", auto="allow", account=account)
    page = person.connect(world.link(end_user, apps=[app]), app)
    assert f"{discover()[app].title} is connected" in page.text
    return world.verified(end_user)


@pytest.mark.parametrize("app", NAMES)
def test_an_account_is_connected_imported_connected_again_and_disconnected(
    world: World, person: Person, end_user: str, app: str
) -> None:
    connection = connected(world, person, end_user, app)
    (credential,) = world.credentials()
    assert (credential["kind"], credential["oauth_app_id"]) == (OFFERED[app].kind, world.sequin_app(app))
    assert connection["sequin"]["credential_id"] == credential["id"]
    assert connection["scopes"] == list(OFFERED[app].scopes)
    # Whoever holds the refresh token refreshes, and it was handed over or it was not.
    assert ("refresh_token" in credential["properties"]) is not OFFERED[app].refreshes

    (grant,) = grants(world, app, connection)
    again = connected(world, Person(world), end_user, app, grant["account"])
    assert again["ref"] == connection["ref"]
    renewed = eventually(lambda: [one for one in world.credentials() if one["import_count"] > 1])
    assert [one["id"] for one in renewed] == [credential["id"]]

    page = person.get(f"/connections/{connection['ref']}/disconnect")
    person.follow(person.press(page, f"/connections/{connection['ref']}/disconnect"))
    eventually(lambda: not world.credentials())
    if OFFERED[app].keeps_grant:
        eventually(lambda: grants(world, app, connection)[-1]["status"] == "revoked")
    else:
        # Nothing is left here to end it with, and the person was told.
        stays = OFFERED[app].provider.stays
        assert stays is not None
        assert stays(OFFERED[app].config) in page.text


@pytest.mark.parametrize("app", NAMES)
def test_no_and_a_wrong_code_end_the_attempt(world: World, person: Person, end_user: str, app: str) -> None:
    world.control("consent", auto="deny")
    page = person.connect(world.link(end_user), app)
    assert world.flow_state(page.url) == "failed"
    assert not world.requests_to(*TOKENS[app])

    world.control("consent", auto="allow")
    callback = urlsplit(Person(world).come_back(world.link(end_user), app))
    other = Person(world)
    mine = urlsplit(other.come_back(world.link(end_user), app))
    query = "&".join("code=wrong" if part.startswith("code=") else part for part in mine.query.split("&"))
    page = other.follow(other.get(urlunsplit(mine._replace(query=query))))
    assert world.flow_state(page.url) == "failed"
    # And what came back to another browser is of no use in this one.
    assert other.get(urlunsplit(callback)).status_code >= 400
    assert [entry["status"] for entry in world.requests_to(*TOKENS[app])] == [400]
    assert world.connections(end_user) == []


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("token", {"fault": "status", "status": 200, "body": '{"error": "invalid_grant"}'}, "failed"),
    ("token", {"fault": "status", "status": 200, "body": '{"token_type": "bearer"}'}, "failed"),
    ("token", {"fault": "wrong_types"}, "failed"),
    ("token", {"fault": "status", "status": 503}, "interrupted"),
    ("account", {"fault": "status", "status": 403}, "failed"),
    ("account", {"fault": "wrong_types", "when": "after"}, "failed"),
]


@pytest.mark.parametrize("app", NAMES)
def test_whatever_the_provider_answers_is_told_and_asked_once(world: World, end_user: str, app: str) -> None:
    for number, (where, fault, state) in enumerate(FAULTS, 1):
        world.close_circuits()
        person = Person(world)
        callback = person.come_back(world.link(f"{end_user}-{number}"), app)
        # A token endpoint that is asked again would show; what was granted in vain is ended through the account's.
        world.control("faults", on=f"{app}.{where}", times=9 if where == "token" else 1, **fault)
        page = person.follow(person.get(callback))
        assert world.flow_state(page.url) == state, fault
        assert len(world.requests_to(*TOKENS[app])) == number
        assert world.connections(f"{end_user}-{number}") == []
        world.end_outage()


@pytest.mark.parametrize("app", [name for name in NAMES if OFFERED[name].refreshes])
def test_a_token_is_renewed_before_its_end_and_one_that_was_revoked_is_known(
    world: World, person: Person, end_user: str, app: str
) -> None:
    connection = connected(world, person, end_user, app)
    (before,) = world.credentials()
    (first,) = grants(world, app, connection)
    due_now(world, "refresh")
    eventually(lambda: grants(world, app, connection)[0]["access_token"] != first["access_token"])
    (grant,) = grants(world, app, connection)
    assert (grant["refresh_token"] != first["refresh_token"]) is discover()[app].rules.rotates
    (family,) = [one for one in world.control("state")["families"] if one["account"] == grant["account"]]
    assert (family["refreshes"], family["reuses"]) == (1, 0)
    eventually(lambda: grant["access_token"] in world.credentials()[0]["properties"].values())
    assert world.credentials()[0]["id"] == before["id"]

    world.settle()
    assert world.control("revoke", provider=app, account=grant["account"]) == {"ended": 1}
    due_now(world, "probe")
    eventually(lambda: [one["status"] for one in world.connections(end_user)] == ["revoked"])
    again = connected(world, Person(world), end_user, app, grant["account"])
    assert again["ref"] == connection["ref"]
