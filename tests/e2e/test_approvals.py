"""A member asks an owner of an organisation for GitHub's App, and the owner answers later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.e2e.world import Person, World, eventually

ORG = "tidewater-coop"
ORG_ID = "90001"
MEMBER = "member-max"


@pytest.fixture(autouse=True)
def account_is_free_again(world: World, end_user: str) -> Iterator[None]:
    """Let go of the organisation afterwards: there is only one, and an account belongs to one person."""
    yield
    for connection in world.connections(end_user):
        world.api("DELETE", f"connections/{connection['ref']}")
    world.settle()


def allow(world: World, person: Person, answer: requests.Response) -> requests.Response:
    """Sign in at GitHub as the member and authorize; return the page that this leads to."""
    page = person.follow(answer)
    return person.follow(person.press(page, "/login/oauth/authorize", decision="authorize", login=MEMBER))


def ask(world: World, person: Person, end_user: str) -> requests.Response:
    """Ask the owners of an organisation, as somebody who can already reach another one without being its owner."""
    world.control("consent", auto=None)
    refused = allow(world, person, person.leave(world.link(end_user), "github"))
    assert "You cannot connect this GitHub account" in refused.text
    install = allow(world, person, person.press(refused, "/elsewhere"))
    return person.follow(person.press(install, "/installations/new", account=ORG, action="request"))


def waiting(world: World, end_user: str) -> dict[str, Any]:
    """Return the person's only connection, which waits."""
    (connection,) = world.connections(end_user)
    assert (connection["status"], connection["account"]) == ("awaiting_approval", None)
    return connection


def test_an_owner_approves_later_and_nobody_has_to_come_back(world: World, person: Person, end_user: str) -> None:
    page = ask(world, person, end_user)

    assert page.status_code == 200
    assert "Waiting for an owner to approve" in page.text
    ref = waiting(world, end_user)["ref"]
    assert world.credentials() == []
    told = world.control("emit", provider="github", event="installation.created", account=ORG)
    assert told["status"] < 300

    connection = world.imported(end_user)
    assert (connection["ref"], connection["account"]["id"], connection["account"]["name"]) == (ref, ORG_ID, ORG)
    (credential,) = world.credentials()
    assert credential["properties"]["account_login"] == ORG
    assert "GitHub is connected" in person.get(page.url).text


def test_an_approval_nobody_told_us_of_is_found_by_checking_again(world: World, person: Person, end_user: str) -> None:
    page = ask(world, person, end_user)
    eventually(lambda: ORG in person.get(page.url).text)

    lost = world.control("emit", provider="github", event="installation.created", account=ORG, unsigned=True)
    assert lost["status"] == 401
    person.follow(person.press(person.get(page.url), "/finish"))

    assert world.imported(end_user)["account"]["id"] == ORG_ID


def test_what_was_taken_back_stays_so_when_an_owner_approves(world: World, person: Person, end_user: str) -> None:
    ask(world, person, end_user)
    ref = waiting(world, end_user)["ref"]
    assert "Waiting for approval" in person.get("/connections").text

    ended = person.follow(person.press(person.get(f"/connections/{ref}/disconnect"), "/disconnect"))
    told = world.control("emit", provider="github", event="installation.created", account=ORG)

    assert ended.status_code == 200
    assert told["status"] < 300
    world.settle()
    (connection,) = world.connections(end_user)
    assert (connection["status"], connection["account"]) == ("disconnected", None)
    assert world.credentials() == []


def test_a_personal_token_is_imported_and_ended_with_the_connection(
    world: World, person: Person, end_user: str
) -> None:
    world.control("consent", auto="allow", account="octo-jo")
    page = person.connect(world.link(end_user, apps=["github_oauth"]), "github_oauth")

    assert "GitHub (personal) is connected" in page.text
    connection = world.imported(end_user)
    assert connection["scopes"] == ["read:user", "read:org"]
    (credential,) = world.credentials()
    assert credential["kind"] == "github_oauth2"
    assert credential["properties"]["access_token"].startswith("gho_")
    assert world.api("DELETE", f"connections/{connection['ref']}").status_code == 202
    eventually(lambda: not world.credentials())
    eventually(lambda: world.requests_to("DELETE", "/github/api/applications/.*/token"))
