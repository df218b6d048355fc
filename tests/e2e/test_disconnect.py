"""Disconnecting, by everybody who can: at the provider and in Sequin too, and the account is free afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.e2e.world import Person, World, eventually

DEAUTHORIZE = ("POST", "/stripe/oauth/deauthorize")
DELETE = ("DELETE", "/sequin/v1/credentials/.+")
ALL_DONE = "This account is no longer connected."


def verified(world: World, end_user: str) -> dict[str, Any]:
    """Wait until the person's only connection has passed its check and return it."""

    def look() -> dict[str, Any] | None:
        (found,) = world.connections(end_user)
        return found if found["status"] == "ok" else None

    return eventually(look)


def ended(world: World, end_user: str) -> dict[str, Any]:
    """Wait until nothing is left to do about the person's only connection and return it."""

    def look() -> dict[str, Any] | None:
        (found,) = world.connections(end_user)
        return found if (found["status"], found["note"]) == ("disconnected", ALL_DONE) else None

    return eventually(look)


def disconnect(person: Person, ref: str) -> requests.Response:
    """Disconnect on the pages: from the list to the confirmation to what came of it."""
    assert f"/connections/{ref}/disconnect" in person.get("/connections").text
    page = person.get(f"/connections/{ref}/disconnect")
    assert "What stops" in page.text
    return person.follow(person.press(page, f"/connections/{ref}/disconnect"))


def test_a_person_disconnects_stripe(world: World, person: Person, end_user: str) -> None:
    world.control("consent", auto="allow", account="acct_1Leaving")
    person.connect(world.link(end_user), "stripe")
    connection = verified(world, end_user)

    page = disconnect(person, connection["ref"])

    assert page.status_code == 200
    assert "is disconnected" in page.text
    assert ended(world, end_user)["sequin"]["credential_id"] is None
    assert world.credentials() == []
    (told,) = world.requests_to(*DEAUTHORIZE)
    assert told["status"] == 200
    assert "acct_1Leaving" in told["body"]
    (deleted,) = world.requests_to(*DELETE)
    assert deleted["path"].endswith(connection["sequin"]["credential_id"])
    assert "is disconnected." in person.get(f"/connections/{connection['ref']}").text


def test_a_person_disconnects_github_and_the_installation_stays(world: World, person: Person, end_user: str) -> None:
    person.connect(world.link(end_user), "github")
    connection = verified(world, end_user)

    page = person.get(f"/connections/{connection['ref']}/disconnect")
    assert "the app’s installation, until you remove it there" in page.text
    disconnect(person, connection["ref"])

    ended(world, end_user)
    assert world.credentials() == []
    assert not world.requests_to("DELETE", "/github/api/.*")


def test_githubs_token_is_ended_where_it_is_still_held(world: World, person: Person, end_user: str) -> None:
    world.fault("sequin.get", "status", status=503)
    person.connect(world.link(end_user), "github")
    connection = world.imported(end_user)

    disconnect(person, connection["ref"])

    ended(world, end_user)
    (told,) = world.requests_to("DELETE", "/github/api/applications/.*")
    assert (told["path"].rpartition("/")[2], told["status"]) == ("token", 204)
    assert world.credentials() == []


@pytest.mark.parametrize("way", ["api", "cli"])
def test_hosts_and_the_command_line_disconnect_too(world: World, person: Person, end_user: str, way: str) -> None:
    person.connect(world.link(end_user), "stripe")
    ref = verified(world, end_user)["ref"]

    if way == "api":
        assert [world.api("DELETE", f"connections/{ref}").status_code for _ in range(2)] == [202, 202]
    else:
        assert f"{ref} is disconnected." in world.run("connections", "disconnect", ref)

    ended(world, end_user)
    assert world.credentials() == []
    assert len(world.requests_to(*DEAUTHORIZE)) == 1


def test_sequin_away_leaves_it_pending_and_the_account_taken_until_it_is_deleted(
    world: World, person: Person, end_user: str
) -> None:
    world.control("consent", auto="allow", account="acct_1Moving")
    person.connect(world.link(end_user), "stripe")
    ref = verified(world, end_user)["ref"]
    world.fault("sequin.delete", "status", status=503)

    page = disconnect(person, ref)
    eventually(lambda: world.requests_to(*DELETE))

    assert "is disconnected" in page.text
    eventually(lambda: "still clearing up" in person.get(f"/connections/{ref}").text)
    rival = f"{end_user}-rival"
    refused = Person(world).connect(world.link(rival), "stripe")
    assert refused.status_code == 409
    assert "already connected" in refused.text
    assert len(world.credentials()) == 1
    world.end_outage()
    ended(world, end_user)
    assert world.credentials() == []
    assert "Stripe is connected" in Person(world).connect(world.link(rival), "stripe").text
    theirs = verified(world, rival)
    (credential,) = world.credentials()
    assert credential["metadata"] == {"broker_connection_id": theirs["ref"], "end_user_id": rival}


def test_stripe_away_is_asked_again_until_it_has_ended_the_access(world: World, person: Person, end_user: str) -> None:
    person.connect(world.link(end_user), "stripe")
    ref = verified(world, end_user)["ref"]
    world.fault("stripe.deauthorize", "status", status=500, times=3)

    page = disconnect(person, ref)

    assert "we are still ending the access at Stripe." in page.text
    ended(world, end_user)
    assert [entry["status"] for entry in world.requests_to(*DEAUTHORIZE)] == [500, 500, 500, 200]


def test_a_lost_answer_of_stripe_does_not_leave_it_pending_for_ever(
    world: World, person: Person, end_user: str
) -> None:
    """The second try is told that nothing is connected any more: that is what was wanted."""
    person.connect(world.link(end_user), "stripe")
    ref = verified(world, end_user)["ref"]
    world.fault("stripe.deauthorize", "reset", when="after", times=1)

    disconnect(person, ref)

    ended(world, end_user)
    assert world.requests_to(*DEAUTHORIZE)[-1]["status"] == 401


def test_connecting_again_after_a_disconnect(world: World, person: Person, end_user: str) -> None:
    world.control("consent", auto="allow", account="acct_1Returning")
    person.connect(world.link(end_user), "stripe")
    first = verified(world, end_user)
    disconnect(person, first["ref"])
    ended(world, end_user)

    assert "Stripe is connected" in person.connect(world.link(end_user), "stripe").text

    again = verified(world, end_user)
    assert again["ref"] == first["ref"]
    (credential,) = world.credentials()
    assert credential["id"] == again["sequin"]["credential_id"]
    assert credential["metadata"] == {"broker_connection_id": again["ref"], "end_user_id": end_user}
    assert "/disconnect" in person.get(f"/connections/{again['ref']}").text


def test_another_person_sees_nothing_to_disconnect(world: World, person: Person, end_user: str) -> None:
    person.connect(world.link(end_user), "stripe")
    ref = verified(world, end_user)["ref"]
    stranger = Person(world)
    stranger.connect(world.link(f"{end_user}-other"), "stripe")

    mine = stranger.get("/connections").text.partition('href="/connections/')[2].partition('"')[0]
    page = stranger.get(f"/connections/{mine}/disconnect")
    answer = stranger.browser.post(
        f"{world.url}/connections/{ref}/disconnect",
        data={"csrf_token": page.text.partition('name="csrf_token" value="')[2].partition('"')[0]},
        allow_redirects=False, timeout=60,
    )  # fmt: skip

    assert stranger.get(f"/connections/{ref}/disconnect").status_code == 404
    assert answer.status_code == 404
    assert verified(world, end_user)["ref"] == ref
