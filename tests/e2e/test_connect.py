"""From a connect link to a credential in Sequin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import requests

from tests.e2e.world import Person, World, eventually


def test_a_stripe_account_becomes_a_credential_in_sequin(world: World, person: Person, end_user: str) -> None:
    world.control("consent", auto="allow", account="acct_1Northwind")

    page = person.connect(world.link(end_user, email="jo@example.com"), "stripe")

    assert page.status_code == 200
    assert "Stripe is connected" in page.text
    connection = world.imported(end_user)
    (credential,) = world.credentials()
    assert credential["kind"] == "stripe_oauth2"
    assert credential["oauth_app_id"] == world.sequin_app("stripe") == connection["sequin"]["oauth_app_id"]
    assert credential["id"] == connection["sequin"]["credential_id"]
    assert credential["properties"]["stripe_user_id"] == "acct_1Northwind" == connection["account"]["id"]
    assert credential["properties"]["secret"].startswith("sk_")
    assert credential["metadata"] == {"broker_connection_id": connection["ref"], "end_user_id": end_user}


def test_a_github_installation_becomes_a_credential_in_sequin(world: World, person: Person, end_user: str) -> None:
    page = person.connect(world.link(end_user), "github")

    assert page.status_code == 200
    assert "GitHub is connected" in page.text
    connection = world.imported(end_user)
    (credential,) = world.credentials()
    assert credential["kind"] == "github_app"
    assert credential["oauth_app_id"] == world.sequin_app("github")
    assert set(credential["properties"]) - {"name"} == {"kind", "account_type", "account_login", "installation_id"}
    assert credential["properties"]["account_login"] == connection["account"]["name"]


def test_twenty_identical_callbacks_at_once_redeem_once(world: World, person: Person, end_user: str) -> None:
    callback = person.come_back(world.link(end_user), "stripe")
    cookies = person.browser.cookies.get_dict()

    def call(_: int) -> requests.Response:
        return requests.get(callback, cookies=cookies, allow_redirects=False, timeout=60)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(call, range(20)))

    assert {answer.status_code for answer in answers} == {303}
    assert len({answer.headers["Location"] for answer in answers}) == 1
    assert len(world.requests_to("POST", "/stripe/oauth/token")) == 1
    world.imported(end_user)
    assert len(world.credentials()) == 1
    assert "Stripe is connected" in person.get(answers[0].headers["Location"]).text


def test_another_browser_cannot_use_the_callback_and_the_right_one_still_can(
    world: World, person: Person, end_user: str
) -> None:
    callback = person.come_back(world.link(end_user), "stripe")

    stranger = Person(world).get(callback)

    assert stranger.status_code == 403
    assert not world.requests_to("POST", "/stripe/oauth/token")
    assert not stranger.cookies.get("broker_session")
    assert "Stripe is connected" in person.follow(person.get(callback)).text


def test_looking_ahead_spends_nothing(world: World, person: Person, end_user: str) -> None:
    callback = person.come_back(world.link(end_user), "stripe")

    assert person.browser.head(callback, timeout=60).status_code < 300
    assert person.browser.get(callback, headers={"Sec-Purpose": "prefetch"}, timeout=60).status_code == 425

    assert not world.requests_to("POST", "/stripe/oauth/token")
    assert "Stripe is connected" in person.follow(person.get(callback)).text


def test_the_person_sees_what_they_connected(world: World, person: Person, end_user: str) -> None:
    person.connect(world.link(end_user), "stripe")
    connection = world.imported(end_user)

    page = person.get("/connections")

    assert page.status_code == 200
    assert connection["account"]["name"] in page.text
    assert Person(world).get("/connections").status_code == 401


def test_an_account_of_somebody_else_is_refused_and_theirs_is_untouched(
    world: World, person: Person, end_user: str
) -> None:
    world.control("consent", auto="allow", account="acct_1Contested")
    person.connect(world.link(end_user), "stripe")
    before = world.verified(end_user)
    held = world.credentials()

    page = Person(world).connect(world.link(f"{end_user}-rival"), "stripe")

    assert page.status_code == 409
    assert "already connected" in page.text
    assert end_user not in page.text.replace(f"{end_user}-rival", "")
    assert world.connections(f"{end_user}-rival") == []
    assert world.connections(end_user) == [before]
    assert world.credentials() == held


def test_no_means_no(world: World, person: Person, end_user: str) -> None:
    world.control("consent", auto="deny")

    page = person.connect(world.link(end_user), "stripe")

    assert page.status_code == 200
    assert "Stripe was not connected" in page.text
    assert not world.requests_to("POST", "/stripe/oauth/token")
    assert world.connections(end_user) == []


def test_the_same_person_connecting_again_updates_in_place(world: World, person: Person, end_user: str) -> None:
    world.control("consent", auto="allow", account="acct_1Again")
    person.connect(world.link(end_user), "stripe")
    first = world.imported(end_user)
    old_secret = world.credentials()[0]["properties"]["secret"]

    Person(world).connect(world.link(end_user), "stripe")

    eventually(lambda: [c for c in world.credentials() if c["properties"]["secret"] != old_secret])
    second = world.imported(end_user)
    assert second["ref"] == first["ref"]
    assert len(world.credentials()) == 1


def test_a_link_is_spent_by_a_saved_connection_and_by_nothing_less(world: World, person: Person, end_user: str) -> None:
    link = world.link(end_user, apps=["stripe"])
    world.control("consent", auto="deny")
    person.connect(link, "stripe")
    world.control("consent", auto="allow")

    assert "Stripe is connected" in person.connect(link, "stripe").text

    assert person.get(link).status_code == 200
    assert Person(world).get(link).status_code in (403, 410)
