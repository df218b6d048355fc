"""Everything around the broker failing: the person is told the truth, and what can arrive arrives once."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import sqlalchemy as sa

from tests.e2e.world import Form, Person, World, eventually

SOON = 25
IMPORT = ("POST", "/sequin/v1/credentials")
STRIPE_TOKEN = ("POST", "/stripe/oauth/token")
GITHUB_TOKEN = ("POST", "/github/login/oauth/access_token")


def timed(person: Person, url: str) -> tuple[requests.Response, float]:
    """Open an address; return the answer and how many seconds it took."""
    began = time.monotonic()
    answer = person.get(url)
    return answer, time.monotonic() - began


def keeps_something(world: World, page: requests.Response) -> bool:
    """Tell whether the flow of a page still holds a sealed grant or verifier."""
    ref = page.url.partition("/flows/")[2].partition("?")[0]
    query = """
        SELECT flows.grant_sealed IS NOT NULL OR hops.verifier_sealed IS NOT NULL
        FROM flows JOIN hops ON hops.flow_id = flows.id WHERE flows.ref = :ref
    """
    with world.database() as connection:
        found = connection.execute(sa.text(query), {"ref": ref}).scalars().all()
    assert found
    return any(found)


def status_of(world: World, end_user: str) -> str:
    """Return the status of the person's only connection."""
    (connection,) = world.connections(end_user)
    return str(connection["status"])


# --- Sequin -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outage",
    [
        {"fault": "status", "status": 503},
        {"fault": "status", "status": 503, "when": "after"},
        {"fault": "status", "status": 429, "headers": {"Retry-After": "3"}},
        {"fault": "hang", "seconds": 30, "when": "after"},
        {"fault": "reset"},
        {"fault": "reset", "when": "after"},
        {"fault": "truncate", "when": "after"},
        {"fault": "html"},
        {"fault": "wrong_types", "when": "after"},
        {"fault": "huge", "when": "after"},
    ],
    ids=lambda outage: "-".join(str(outage[key]) for key in ("fault", "status", "when") if key in outage),
)
def test_sequin_away_costs_the_person_nothing(
    world: World, person: Person, end_user: str, outage: dict[str, Any]
) -> None:
    world.fault("sequin.import", **outage)

    answer, took = timed(person, person.come_back(world.link(end_user), "stripe"))
    page = person.follow(answer)

    assert answer.status_code == 303
    assert took < 3
    assert page.status_code == 200
    assert "Stripe is connected" in page.text
    assert "finishing set-up" in page.text
    # The outage was met, and is still told as what it is.
    eventually(lambda: [one for one in world.requests_to(*IMPORT) if one["fault"]])
    assert status_of(world, end_user) == "pending"
    world.end_outage()
    connection = world.imported(end_user)
    assert connection["status"] in ("unknown", "ok")
    (credential,) = world.credentials()
    assert credential["id"] == connection["sequin"]["credential_id"]
    assert "Everything is set up" in person.get(page.url).text
    assert len(world.requests_to(*STRIPE_TOKEN)) == 1


def test_sequin_says_when_to_come_back_and_is_obeyed(world: World, person: Person, end_user: str) -> None:
    world.fault("sequin.import", "status", status=429, headers={"Retry-After": "4"}, times=1)

    person.connect(world.link(end_user), "stripe")
    world.imported(end_user)

    first, second = (datetime.fromisoformat(one["time"]) for one in world.requests_to(*IMPORT))
    assert (second - first).total_seconds() >= 4


@pytest.mark.parametrize(
    "mistake",
    [{"fault": "status", "status": 401}, {"fault": "redirect", "status": 307}],
    ids=["our-token-is-not-accepted", "our-address-is-old"],
)
def test_a_setting_that_is_wrong_holds_the_import_until_it_is_mended(
    world: World, person: Person, end_user: str, mistake: dict[str, Any]
) -> None:
    world.fault("sequin.import", **mistake)

    page = person.connect(world.link(end_user), "stripe")
    eventually(lambda: status_of(world, end_user) == "import_failed")

    assert "We could not finish connecting Stripe" in person.get(page.url).text
    assert world.credentials() == []
    world.end_outage()
    # Nobody has to press anything; and the address it redirected to never saw the token.
    world.imported(end_user)
    assert len(world.credentials()) == 1
    assert not world.requests_to("POST", "/elsewhere")


def test_what_sequin_refuses_waits_for_a_person(world: World, person: Person, end_user: str) -> None:
    world.fault("sequin.import", "status", status=422)
    page = person.connect(world.link(end_user), "stripe")
    eventually(lambda: status_of(world, end_user) == "import_failed")

    (connection,) = world.connections(end_user)
    assert "We could not finish connecting Stripe" in person.get(page.url).text
    world.end_outage()
    assert len(world.requests_to(*IMPORT)) == 1

    world.run("connections", "retry", connection["ref"])

    assert world.imported(end_user)["ref"] == connection["ref"]
    assert len(world.credentials()) == 1
    assert "Everything is set up" in person.get(page.url).text


# --- the exchange -------------------------------------------------------------------------------------

INTERRUPTED = "The connection was interrupted"
INCOMPLETE = "could not complete the connection"


@pytest.mark.parametrize(
    ("outage", "sentence", "state"),
    [
        ({"fault": "hang", "seconds": 60, "when": "after"}, INTERRUPTED, "interrupted"),
        ({"fault": "reset"}, INTERRUPTED, "interrupted"),
        ({"fault": "reset", "when": "after"}, INTERRUPTED, "interrupted"),
        ({"fault": "truncate", "when": "after"}, INTERRUPTED, "interrupted"),
        ({"fault": "status", "status": 500}, INTERRUPTED, "interrupted"),
        ({"fault": "html"}, INTERRUPTED, "interrupted"),
        ({"fault": "huge", "when": "after"}, INTERRUPTED, "interrupted"),
        ({"fault": "redirect", "status": 307}, INTERRUPTED, "interrupted"),
        ({"fault": "wrong_types", "when": "after"}, INCOMPLETE, "failed"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_an_exchange_that_goes_wrong_is_told_and_never_repeated(
    world: World, person: Person, end_user: str, outage: dict[str, Any], sentence: str, state: str
) -> None:
    link = world.link(end_user)
    callback = person.come_back(link, "stripe")
    world.fault("stripe.token", **outage)

    answer, took = timed(person, callback)
    page = person.follow(answer)

    assert answer.status_code == 303
    assert took < 20
    assert sentence in page.text
    assert world.flow_state(page.url) == state
    assert "Traceback" not in page.text
    # A reload of the provider's answer spends nothing either.
    assert person.get(callback).headers["Location"] == answer.headers["Location"]
    assert len(world.requests_to(*STRIPE_TOKEN)) == 1
    assert not world.requests_to("POST", "/elsewhere")
    assert world.connections(end_user) == []
    assert world.credentials() == []
    eventually(lambda: not keeps_something(world, page))
    world.end_outage()
    # What only a setting can mend is not offered again there; the link still works.
    again = person.follow(person.press(page if state == "interrupted" else person.get(link), "/start/stripe"))
    assert "Stripe is connected" in again.text
    world.imported(end_user)
    assert len(world.credentials()) == 1
    assert len(world.requests_to(*STRIPE_TOKEN)) == 2


def test_an_exchange_with_a_verifier_goes_wrong_the_same_way(world: World, person: Person, end_user: str) -> None:
    callback = person.come_back(world.link(end_user), "github")
    world.fault("github.token", "reset", when="after", times=1)

    page = person.follow(person.get(callback))

    assert INTERRUPTED in page.text
    assert len(world.requests_to(*GITHUB_TOKEN)) == 1
    eventually(lambda: not keeps_something(world, page))
    assert "GitHub is connected" in person.follow(person.press(page, "/start/github")).text
    world.imported(end_user)
    assert len(world.requests_to(*GITHUB_TOKEN)) == 2


# --- which account it is ------------------------------------------------------------------------------


def test_a_provider_that_fails_after_the_exchange_is_asked_again_by_the_worker(world: World, end_user: str) -> None:
    points = {"stripe.account": "stripe", "github.user": "github", "github.installations": "github"}
    pages = {}
    # Who has the App already comes back only once; who has it twice will have to be asked.
    visitors = {"github.user": "solo-sam", "github.installations": "many-mona"}
    for point, app in points.items():
        person = Person(world)
        world.control("consent", auto="allow", account=visitors.get(point))
        callback = person.come_back(world.link(f"{end_user}-{point}"), app)
        world.fault(point, "status", status=503, times=2)
        page = person.follow(person.get(callback))
        assert page.status_code == 200
        assert f"Finishing with {'Stripe' if app == 'stripe' else 'GitHub'}" in page.text
        assert world.connections(f"{end_user}-{point}") == []
        pages[point] = (person, page)

    # Soon, and not only when a callback would have been given up for dead (30 s).
    person, page = pages["stripe.account"]
    world.imported(f"{end_user}-stripe.account", within=SOON)
    assert "Stripe is connected" in person.get(page.url).text
    person, page = pages["github.user"]
    world.imported(f"{end_user}-github.user", within=SOON)
    assert "GitHub is connected" in person.get(page.url).text
    # Several installations: the worker can only find out that the person has to be asked.
    person, page = pages["github.installations"]
    eventually(lambda: "Choose one of them" in person.get(page.url).text, within=SOON)
    assert len(world.credentials()) == 2
    assert len(world.requests_to(*STRIPE_TOKEN)) == 1
    assert len(world.requests_to(*GITHUB_TOKEN)) == 2


# --- GitHub's own turns -------------------------------------------------------------------------------


def install_page(world: World, person: Person, end_user: str, login: str) -> requests.Response:
    """Go as `login`, who has the App nowhere yet, as far as GitHub's installation page."""
    world.control("consent", auto="allow", account=login)
    callback = person.come_back(world.link(end_user), "github")
    world.control("consent", auto=None)
    page = person.follow(person.get(callback))
    assert page.status_code == 200
    assert "/installations/new" in page.url
    return page


def test_an_owner_installs_on_their_organisation_by_hand(world: World, person: Person, end_user: str) -> None:
    page = install_page(world, person, end_user, "octo-jo")

    answer = person.press(page, "/installations/new", account="tidewater-coop", action="install")
    setup = str(answer.headers["Location"])
    page = person.follow(answer)

    assert "GitHub is connected" in page.text
    connection = world.imported(end_user)
    assert connection["account"] | {"mode": "-"} == {
        "id": "90001", "name": "tidewater-coop", "type": "Organization", "mode": "-"
    }  # fmt: skip
    (credential,) = world.credentials()
    assert credential["properties"]["account_login"] == "tidewater-coop"
    # The installation's answer is good for one visit: the same browser sees the flow, another one nothing.
    assert "/oauth/github/setup" in setup
    assert person.get(setup).headers["Location"] in page.url
    stranger = Person(world).get(setup)
    assert stranger.status_code == 403
    assert not stranger.cookies
    assert len(world.connections(end_user)) == 1


def test_an_installation_that_is_only_claimed_attaches_nothing(world: World, person: Person, end_user: str) -> None:
    accounts = world.control("state")["accounts"]
    (foreign,) = next(one for one in accounts if one.get("login") == "solo-sam")["installations"]
    page = install_page(world, person, end_user, "octo-jo")
    state = parse_qs(urlsplit(page.url).query)["state"][0]

    claim = f"{world.url}/oauth/github/setup?installation_id={foreign['id']}&setup_action=install"
    without_state = person.get(claim)
    with_state = person.get(f"{claim}&state={state}")

    assert without_state.status_code == 200
    assert with_state.status_code == 303
    # Nothing of that installation is reachable for this person: they are sent to install it themselves.
    assert "/installations/new" in with_state.headers["Location"]
    assert world.connections(end_user) == []
    assert world.credentials() == []
    page = person.follow(with_state)
    done = person.follow(person.press(page, "/installations/new", account="octo-jo", action="install"))
    assert "GitHub is connected" in done.text
    assert world.imported(end_user)["account"]["name"] == "octo-jo"


def test_who_reaches_several_installations_chooses(world: World, person: Person, end_user: str) -> None:
    world.control("consent", auto="allow", account="many-mona")

    page = person.connect(world.link(end_user), "github")

    assert "Choose one of them" in page.text
    assert "many-mona" in page.text
    assert world.connections(end_user) == []
    # An account that was never offered is not attached, and the choice stays open.
    assert person.press(page, "/choose", account="70002").status_code == 400
    assert world.connections(end_user) == []
    done = person.follow(person.press(page, "/choose", account="90002"))
    assert "GitHub is connected" in done.text
    assert world.imported(end_user)["account"]["name"] == "globex-pottery"
    assert [one["properties"]["account_login"] for one in world.credentials()] == ["globex-pottery"]


@pytest.mark.parametrize(
    ("login", "status", "sentence"),
    [
        ("member-max", 403, "You cannot connect this GitHub account"),
        ("paused-pat", 200, "Access to this GitHub account is suspended"),
    ],
)
def test_seeing_an_installation_is_not_enough(
    world: World, person: Person, end_user: str, login: str, status: int, sentence: str
) -> None:
    world.control("consent", auto="allow", account=login)

    page = person.connect(world.link(end_user), "github")

    assert page.status_code == status
    assert sentence in page.text
    assert world.connections(end_user) == []
    assert world.credentials() == []
    eventually(lambda: not keeps_something(world, page))


# --- links that do not open ---------------------------------------------------------------------------


def test_every_kind_of_dead_link_says_what_it_is(world: World, person: Person, end_user: str) -> None:
    expiring = world.link(end_user, expires_in=1)
    page = person.get(expiring)
    eventually(lambda: person.get(expiring).status_code == 410)
    assert "This link has expired" in person.get(expiring).text
    if page.status_code == 200:
        # The page was still open when time ran out: its button says the same.
        late = person.press(page, "/start/stripe")
        assert late.status_code == 410

    made = world.api("POST", "connect-links", json={"end_user": {"id": end_user}}).json()
    assert world.api("DELETE", f"connect-links/{made['id']}").status_code < 300
    revoked = person.get(made["url"])
    assert (revoked.status_code, "This link no longer works" in revoked.text) == (410, True)

    unknown = person.get(f"{world.url}/connect/{'x' * 22}")
    assert (unknown.status_code, "This link does not work" in unknown.text) == (404, True)

    used = world.link(end_user, apps=["stripe"])
    done = person.connect(used, "stripe")
    stranger = Person(world)
    elsewhere = stranger.get(used)
    assert elsewhere.status_code in (403, 410)
    assert Form(elsewhere.text).forms == []
    assert stranger.get(done.url).status_code == 404
    assert not world.requests_to("GET", "/stripe/v1/accounts")
    assert len(world.requests_to(*STRIPE_TOKEN)) == 1
