"""GitHub over real HTTP: its webhooks, personal tokens that end and are renewed, and the one a reconnect replaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.world import Person, World, eventually

END_TOKEN = "/github/api/applications/.*/token"
END_GRANT = "/github/api/applications/.*/grant"


@pytest.fixture(scope="module", params=DATABASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose personal tokens expire. Its sandbox is not reset, so everybody who ever connected is known."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        opened = World(tmp_path_factory.mktemp("github"), url, GITHUB_OAUTH_EXPIRING="true")
        try:
            opened.start_sandbox()
            opened.start_web()
            opened.start_worker()
            yield opened
        finally:
            opened.stop_all()


@pytest.fixture
def login(end_user: str) -> str:
    """What somebody is called at GitHub."""
    return f"hana-{end_user}"


def connect(world: World, person: Person, end_user: str, app: str, login: str) -> dict[str, Any]:
    world.control("consent", auto="allow", account=login)
    page = person.connect(world.link(end_user, apps=[app]), app)
    assert "is connected" in page.text
    return world.verified(end_user)


def becomes(world: World, end_user: str, status: str) -> dict[str, Any]:
    """Wait until the person's only connection has a status and return it."""

    def look() -> dict[str, Any] | None:
        (found,) = world.connections(end_user)
        return found if found["status"] == status else None

    return eventually(look)


def tell(world: World, login: str, action: str, **more: object) -> int:
    """Let GitHub tell of an installation and return what the broker answered."""
    sent = world.control("emit", provider="github", event=f"installation.{action}", account=login, **more)
    return int(sent["status"])


def stored(world: World) -> list[tuple[str, str | None]]:
    with world.database() as database:
        query = sa.text("SELECT delivery_id, outcome FROM provider_events ORDER BY id")
        return [(row[0], row[1]) for row in database.execute(query)]


def came_of(world: World, delivery: str) -> str:
    """Wait until a delivery was acted on and return what came of it."""
    return eventually(lambda: dict(stored(world)).get(delivery))


def due_now(world: World, kind: str) -> None:
    with world.database() as database:
        due = sa.text("UPDATE jobs SET due_at = updated_at WHERE kind = :kind AND state = 'waiting'")
        database.execute(due, {"kind": kind})


def tokens(world: World, login: str) -> list[dict[str, Any]]:
    """Return the personal tokens of somebody that GitHub still knows, oldest first."""
    client = world.environment["GITHUB_OAUTH_CLIENT_ID"]
    return [one for one in world.control("state")["grants"] if (one["client_id"], one["account"]) == (client, login)]


def imported(world: World, connection: dict[str, Any]) -> str:
    """Return the token that Sequin works with."""
    held = {one["id"]: one for one in world.credentials()}[connection["sequin"]["credential_id"]]
    return str(held["properties"]["access_token"])


# --- webhooks -------------------------------------------------------------------------------------------


def test_suspended_allowed_again_and_deleted_at_github_is_told_each_time(
    world: World, person: Person, end_user: str, login: str
) -> None:
    connection = connect(world, person, end_user, "github", login)

    assert tell(world, login, "suspend") == 200
    assert "suspended" in str(becomes(world, end_user, "error")["note"])
    assert "GitHub has suspended our access" in person.get(f"/connections/{connection['ref']}").text

    assert tell(world, login, "unsuspend") == 200
    becomes(world, end_user, "ok")
    assert "suspended" not in person.get(f"/connections/{connection['ref']}").text

    assert tell(world, login, "deleted", id=f"gone-{login}", times=3) == 200
    becomes(world, end_user, "revoked")
    assert "Access removed" in person.get("/connections").text
    assert [one for one in stored(world) if one[0] == f"gone-{login}"] == [(f"gone-{login}", "asked: 1")]

    again = connect(world, Person(world), end_user, "github", login)
    assert again["ref"] == connection["ref"]
    # What was sent before comes once more, and what was under way comes only now: both are the old story.
    assert tell(world, login, "deleted", id=f"gone-{login}", effect=False) == 200
    assert tell(world, login, "deleted", id=f"late-{login}", effect=False) == 200
    assert came_of(world, f"late-{login}") == "asked: 1"
    world.settle()
    becomes(world, end_user, "ok")


def test_github_is_believed_only_when_it_signs_and_then_only_asked(
    world: World, person: Person, end_user: str, login: str
) -> None:
    connect(world, person, end_user, "github", login)
    before = stored(world)
    assert tell(world, login, "deleted", effect=False, unsigned=True) == 401
    assert tell(world, login, "deleted", effect=False, secret="guessed") == 401
    assert stored(world) == before

    # Allowed again before it was suspended, as far as we can tell.
    assert tell(world, login, "unsuspend", id=f"first-{login}", effect=False) == 200
    assert tell(world, login, "suspend", id=f"second-{login}", effect=False) == 200
    # An installation that nobody here has connected.
    assert tell(world, "solo-sam", "deleted", id=f"whose-{login}", effect=False) == 200
    assert came_of(world, f"whose-{login}") == "no connection of ours"
    assert came_of(world, f"first-{login}") == came_of(world, f"second-{login}") == "asked: 1"
    world.settle()
    becomes(world, end_user, "ok")


# --- a personal token that ends ---------------------------------------------------------------------------


def test_a_token_is_renewed_before_it_ends_and_imported_until_the_person_takes_it_back(
    world: World, person: Person, end_user: str, login: str
) -> None:
    connection = connect(world, person, end_user, "github_oauth", login)
    assert imported(world, connection).startswith("gho_")
    with world.database() as database:
        in_time = sa.text(
            "SELECT j.due_at < c.grant_expires_at FROM jobs j JOIN connections c ON c.id = j.subject_id "
            "WHERE j.kind = 'refresh' AND c.ref = :ref"
        )
        assert database.execute(in_time, {"ref": connection["ref"]}).scalar()

    # Twice, since the second is made with the refresh token that the first one brought.
    for times in (1, 2):
        before = imported(world, connection)
        due_now(world, "refresh")
        eventually(lambda before=before: imported(world, connection) != before)  # type: ignore[misc]
        (token,) = tokens(world, login)
        assert (token["access_token"], token["status"]) == (imported(world, connection), "active")
        (family,) = [one for one in world.control("state")["families"] if one["account"] == login]
        assert (family["refreshes"], family["reuses"]) == (times, 0)

    take_back(world, login)
    due_now(world, "refresh")
    becomes(world, end_user, "revoked")
    page = person.get("/connections")
    assert "Access removed" in page.text
    assert "Reconnect" in page.text
    again = connect(world, Person(world), end_user, "github_oauth", login)
    assert again["ref"] == connection["ref"]
    becomes(world, end_user, "ok")


def take_back(world: World, login: str) -> None:
    """Take back what somebody granted, as GitHub's own page does: every token of theirs ends."""
    client = (world.environment["GITHUB_OAUTH_CLIENT_ID"], world.environment["GITHUB_OAUTH_CLIENT_SECRET"])
    url = f"{world.sandbox_url}/github/api/applications/{client[0]}/grant"
    body = {"access_token": tokens(world, login)[0]["access_token"]}
    assert requests.delete(url, auth=client, json=body, timeout=60).status_code == 204


def test_connecting_again_ends_the_token_before_and_nothing_else(
    world: World, person: Person, end_user: str, login: str
) -> None:
    connection = connect(world, person, end_user, "github_oauth", login)
    (first,) = tokens(world, login)
    asked, told = len(world.requests_to("DELETE", END_TOKEN)), len(world.requests_to("DELETE", END_GRANT))

    again = connect(world, Person(world), end_user, "github_oauth", login)
    assert again["ref"] == connection["ref"]
    _, second = tokens(world, login)
    assert imported(world, again) == second["access_token"]
    due_now(world, "discard")
    eventually(lambda: tokens(world, login) == [second])

    # A token of the test before may be asked about as well; it had ended already.
    ended = world.requests_to("DELETE", END_TOKEN)[asked:]
    assert [one["status"] for one in ended if one["status"] != 404] == [204]
    assert len(world.requests_to("DELETE", END_GRANT)) == told
    assert first["access_token"] != second["access_token"]
    world.settle()
    becomes(world, end_user, "ok")
