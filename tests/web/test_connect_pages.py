"""What people see on the way to a provider and back, and what each request may change."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient

from broker import errors
from broker.audit import Actor
from broker.connections import AccountView, ConnectionView, Ending, EndingPart
from broker.disconnection import Effect
from broker.flow_page import AccountChoice
from broker.flows import Onward
from broker.models import CleanUp, FlowState, Hold
from broker.sessions import SignedIn
from broker.status import Status
from tests.web.fakes import (
    BROWSER,
    FLOW,
    NOW,
    PROVIDER_PAGE,
    SESSION,
    TOKEN,
    FakeServices,
    application,
    connection,
    services,
)

LINK, PAGE = f"/connect/{TOKEN}", f"/flows/{FLOW}"
PREFETCHES = [{"Sec-Purpose": "prefetch"}, {"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}]
UNFINISHED: dict[str, Any] = {"connection": None, "ended_at": None}
FAILURES = [
    errors.ConsentDenied,
    errors.ProviderFailed,
    errors.ProviderMisconfigured,
    errors.ProviderDown,
    errors.CodeRefused,
    errors.ExchangeAmbiguous,
    errors.GrantUnusable,
    errors.AccountTaken,
    errors.AccountDisconnected,
    errors.AccountNotPermitted,
    errors.AccountSuspended,
    errors.LinkSpent,
    errors.FlowExpired,
    errors.FlowInterrupted,
]


@pytest.fixture
def fake() -> FakeServices:
    return services()


@pytest.fixture
def client(fake: FakeServices) -> FlaskClient:
    return application(fake).test_client()


@pytest.fixture
def browser(client: FlaskClient) -> FlaskClient:
    """A client that carries the secret of the browser that started the flow."""
    client.set_cookie("broker_browser", BROWSER)
    return client


def post(client: FlaskClient, path: str, **fields: str) -> Any:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get(LINK).text)
    assert found is not None
    return client.post(path, data={"csrf_token": found[1], **fields})


def imported(status: Status, *, minutes: int) -> ConnectionView:
    """Return a connection that Sequin has taken so long ago."""
    made = connection(status)
    return replace(made, hand_off=replace(made.hand_off, imported_at=NOW - timedelta(minutes=minutes)))


def heading(text: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", text, re.DOTALL)
    assert found is not None
    return found[1]


# --- the link's page ----------------------------------------------------------------------------------


def test_the_page_says_which_product_for_whom_and_what_will_be_read(client: FlaskClient) -> None:
    page = client.get(LINK).text
    assert heading(page) == "Connect your accounts"
    assert "For <strong>jo@example.com</strong>. Not you? Close this page." in page
    assert "Acme Analytics will be able to read" in page
    assert ">Connect Stripe</button>" in page
    assert ">Connect GitHub</button>" in page
    assert "So Acme can show your revenue next to your traffic." in page


def test_a_link_for_one_provider_names_it_in_the_heading(client: FlaskClient, fake: FakeServices) -> None:
    fake.links.apps = fake.links.apps[:1]
    assert heading(client.get(LINK).text) == "Connect Stripe to Acme Analytics"


def test_what_is_connected_already_is_shown_and_not_offered_again(client: FlaskClient, fake: FakeServices) -> None:
    fake.links.changes = {"spent": {"stripe": 1}, "unfinished": {"github": NOW}, "return_url": "https://acme.example/x"}
    fake.connections.items = [connection()]
    page = client.get(LINK).text
    assert "Lind Ceramics" in page
    assert "Connect Stripe" not in page
    assert "You started connecting GitHub" in page
    assert 'href="https://acme.example/x"' in page


def test_an_expired_link_shows_what_it_connected_but_starts_nothing(client: FlaskClient, fake: FakeServices) -> None:
    fake.links.changes = {"spent": {"stripe": 1}, "expires_at": NOW}
    fake.connections.items = [connection()]
    page = client.get(LINK).text
    assert "<form" not in page
    assert "This link has expired" in page


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (errors.LinkUnknown(), 404, "This link does not work"),
        (errors.LinkExpired(), 410, "This link has expired"),
        (errors.LinkUsed(), 410, "This link has already been used"),
        (errors.LinkRevoked(), 410, "This link no longer works"),
        (errors.OtherBrowser(), 403, "Open this link in the browser you started from"),
    ],
)
def test_links_that_do_not_work_say_why(
    client: FlaskClient, fake: FakeServices, failure: errors.Refused, status: int, words: str
) -> None:
    fake.links.failure = failure
    answer = client.get(LINK)
    assert answer.status_code == status
    assert heading(answer.text) == words
    assert answer.headers["X-Request-Id"] in answer.text


@pytest.mark.parametrize("headers", PREFETCHES)
def test_a_prefetch_does_not_count_as_opening(client: FlaskClient, fake: FakeServices, headers: dict[str, str]) -> None:
    assert client.get(LINK, headers=headers).status_code == 200
    assert client.head(LINK).status_code == 200
    assert client.get(LINK).status_code == 200
    assert fake.links.counted == [False, False, True]


def test_names_from_outside_are_escaped(client: FlaskClient, fake: FakeServices) -> None:
    fake.links.changes = {"end_user_label": "<script>alert(1)</script>"}
    assert "<script>alert" not in client.get(LINK).text


# --- leaving ------------------------------------------------------------------------------------------


def test_starting_leads_to_the_provider_and_remembers_the_browser(client: FlaskClient, fake: FakeServices) -> None:
    answer = post(client, f"{LINK}/start/stripe")
    assert (answer.status_code, answer.headers["Location"]) == (303, PROVIDER_PAGE)
    cookie = client.get_cookie("broker_browser")
    assert cookie is not None
    assert len(cookie.value) >= 43
    (call,) = fake.flows.calls
    assert call[:3] == ("begin", TOKEN, "stripe")
    assert call[3].secret.reveal() == cookie.value


def test_a_known_browser_keeps_its_secret(browser: FlaskClient, fake: FakeServices) -> None:
    answer = post(browser, f"{LINK}/start/stripe")
    assert "broker_browser" not in answer.headers.get("Set-Cookie", "")
    assert fake.flows.calls[0][3].secret.reveal() == BROWSER


def test_a_cookie_that_cannot_be_ours_is_replaced(client: FlaskClient, fake: FakeServices) -> None:
    client.set_cookie("broker_browser", "short")
    post(client, f"{LINK}/start/stripe")
    assert fake.flows.calls[0][3].secret.reveal() != "short"


def test_a_browser_has_its_secret_before_it_starts_anything(client: FlaskClient, fake: FakeServices) -> None:
    client.get(LINK)
    given = client.get_cookie("broker_browser")
    assert given is not None
    post(client, f"{LINK}/start/stripe")
    assert fake.flows.calls[0][3].secret.reveal() == given.value


@pytest.mark.parametrize("headers", [{"Sec-Purpose": "prefetch"}, {"Purpose": "prefetch"}])
def test_whoever_looks_ahead_is_given_no_secret(client: FlaskClient, headers: dict[str, str]) -> None:
    client.get(LINK, headers=headers)
    client.head(LINK)
    assert client.get_cookie("broker_browser") is None


def test_a_get_starts_nothing(client: FlaskClient, fake: FakeServices) -> None:
    assert client.get(f"{LINK}/start/stripe").status_code == 405
    assert fake.flows.calls == []


# --- coming back --------------------------------------------------------------------------------------


def test_the_callback_renders_nothing_and_leads_to_a_clean_address(browser: FlaskClient, fake: FakeServices) -> None:
    answer = browser.get("/oauth/stripe/callback?state=abc&code=xyz")
    assert (answer.status_code, answer.headers["Location"]) == (303, PAGE)
    _, app_key, parsed, who = fake.flows.calls[0]
    assert (app_key, parsed.code.reveal(), who.secret.reveal()) == ("stripe", "xyz", BROWSER)


def test_the_callback_goes_straight_on_to_the_providers_next_page(browser: FlaskClient, fake: FakeServices) -> None:
    fake.flows.onward = Onward(FLOW, "https://github.test/apps/acme/installations/new?state=s")
    answer = browser.get("/oauth/github/callback?state=abc&code=xyz")
    assert answer.headers["Location"] == "https://github.test/apps/acme/installations/new?state=s"


@pytest.mark.parametrize("path", ["/oauth/stripe/callback?state=a&code=b", "/oauth/github/setup?setup_action=install"])
def test_nobody_but_a_person_consumes_a_return(browser: FlaskClient, fake: FakeServices, path: str) -> None:
    assert browser.head(path).status_code == 204
    for headers in PREFETCHES:
        assert browser.get(path, headers=headers).status_code == 425
    assert browser.post(path).status_code in (400, 405)
    assert fake.flows.calls == []


@pytest.mark.parametrize(
    "query", ["", "state=a", "state=a&code=b&code=c", "state=a&code=b&error=c", "state=%ff&code=a"]
)
def test_a_malformed_return_is_refused(browser: FlaskClient, fake: FakeServices, query: str) -> None:
    answer = browser.get(f"/oauth/stripe/callback?{query}")
    assert answer.status_code == 400
    assert heading(answer.text) == "We could not match this to a request"
    assert fake.flows.calls == []


@pytest.mark.parametrize(("failure", "status"), [(errors.StateUnknown(), 400), (errors.OtherBrowser(), 403)])
def test_a_return_that_is_not_ours_gets_a_page_and_no_session(
    client: FlaskClient, fake: FakeServices, failure: errors.Refused, status: int
) -> None:
    fake.flows.failure = failure
    answer = client.get("/oauth/stripe/callback?state=a&code=b")
    assert answer.status_code == status
    assert "Set-Cookie" not in answer.headers


def test_an_owners_visit_without_our_state_says_thank_you(client: FlaskClient, fake: FakeServices) -> None:
    fake.flows.onward = None
    answer = client.get("/oauth/github/setup?setup_action=install&installation_id=7")
    assert answer.status_code == 200
    assert heading(answer.text) == "Approved. Thank you."


# --- the flow's page ----------------------------------------------------------------------------------


def test_another_browser_does_not_see_the_page(client: FlaskClient) -> None:
    assert client.get(PAGE).status_code == 404


def test_while_the_import_runs_the_page_looks_again_for_two_minutes(browser: FlaskClient, fake: FakeServices) -> None:
    fake.flow_pages.changes = {"connection": connection(Status.PENDING), "return_url": "https://acme.example/?status=x"}
    page = browser.get(PAGE).text
    assert heading(page) == "Stripe is connected"
    assert "We are finishing set-up." in page
    assert f'<noscript><meta http-equiv="refresh" content="5; url={PAGE}?n=1"></noscript>' in page
    assert ">Check again</a>" in page
    assert "Sequin" not in page
    assert "import" not in page
    assert "token" not in page.replace("csrf_token", "")
    assert "http-equiv" in browser.get(f"{PAGE}?n=23").text
    assert "http-equiv" not in browser.get(f"{PAGE}?n=24").text
    assert "http-equiv" not in browser.get(f"{PAGE}?n=-5").text
    assert browser.get(f"{PAGE}?n=abc").status_code == 200


def test_set_up_that_takes_long_says_so(browser: FlaskClient, fake: FakeServices) -> None:
    fake.flow_pages.changes = {"connection": connection(Status.PENDING), "ended_at": NOW - timedelta(minutes=3)}
    assert "Set-up is taking longer than usual. We keep trying" in browser.get(PAGE).text


@pytest.mark.parametrize("status", [Status.OK, Status.UNKNOWN])
def test_a_finished_connection_leads_back_and_on(browser: FlaskClient, fake: FakeServices, status: Status) -> None:
    fake.flow_pages.changes = {
        "connection": imported(status, minutes=3),
        "return_url": "https://acme.example/?status=ok&ref=1",
        "link_apps_left": (fake.apps.get("github"),),
    }
    page = browser.get(PAGE).text
    assert "Everything is set up." in page
    assert 'href="https://acme.example/?status=ok&amp;ref=1">Back to Acme Analytics</a>' in page
    assert f'action="{PAGE}/start/github"' in page
    assert ">Connect GitHub</button>" in page
    assert "http-equiv" not in page
    assert "data-poll" not in page


def test_a_page_that_goes_back_by_itself_does_so_at_once_and_still_has_its_link(
    browser: FlaskClient, fake: FakeServices
) -> None:
    fake.flow_pages.changes = {
        "connection": imported(Status.UNKNOWN, minutes=1),
        "return_url": "https://acme.example/?status=unknown&ref=1",
        "goes_back": True,
    }
    page = browser.get(PAGE).text
    assert '<meta http-equiv="refresh" content="0; url=https://acme.example/?status=unknown&amp;ref=1">' in page
    assert page.count("http-equiv") == 1
    assert "data-poll" not in page
    assert ">Back to Acme Analytics</a>" in page


def test_the_page_looks_again_until_the_first_check_is_made(browser: FlaskClient, fake: FakeServices) -> None:
    fake.flow_pages.changes = {"connection": imported(Status.UNKNOWN, minutes=1)}
    page = browser.get(PAGE).text
    assert "Everything is set up." in page
    assert "Connected · being checked" in page
    assert "not checked yet" not in page
    assert "http-equiv" in page
    assert "data-poll" in page
    assert "Check again" not in page
    fake.flow_pages.changes = {"connection": imported(Status.OK, minutes=1)}
    assert "data-poll" not in browser.get(PAGE).text


def test_what_is_special_about_a_provider_is_said_before_its_next_button(
    browser: FlaskClient, fake: FakeServices
) -> None:
    fake.flow_pages.changes = {"app": fake.apps.get("github"), "link_apps_left": (fake.apps.get("stripe"),)}
    assert "Stripe has no read-only permission" in browser.get(PAGE).text


def test_a_parked_import_is_not_called_connected(browser: FlaskClient, fake: FakeServices) -> None:
    fake.flow_pages.changes = {"connection": connection(Status.IMPORT_FAILED)}
    page = browser.get(PAGE).text
    assert heading(page) == "We could not finish connecting Stripe"
    assert "Not finished" in page
    assert "Finishing set-up" not in page
    assert "Acme Analytics sees this in its list of connections" in page


@pytest.mark.parametrize(("status", "asked"), [(Status.IMPORT_FAILED, 1), (Status.PENDING, 0), (Status.OK, 0)])
def test_the_last_step_is_tried_again_in_the_persons_name(
    browser: FlaskClient, fake: FakeServices, status: Status, asked: int
) -> None:
    fake.flow_pages.changes = {"connection": connection(status)}
    assert (f'action="{PAGE}/finish"' in browser.get(PAGE).text) is bool(asked)
    assert post(browser, f"{PAGE}/finish").headers["Location"] == PAGE
    assert fake.connections.retried == [("9QD2-7F3K-M4TX", Actor("end_user", "jo-lind"))] * asked


def test_another_browser_does_not_try_it_again(client: FlaskClient, fake: FakeServices) -> None:
    fake.flow_pages.changes = {"connection": connection(Status.IMPORT_FAILED)}
    assert post(client, f"{PAGE}/finish").status_code == 404
    assert fake.connections.retried == []


def test_a_test_account_says_so(browser: FlaskClient, fake: FakeServices) -> None:
    made = replace(connection(), account=AccountView("acct_1", "Lind", "standard", "test"))
    fake.flow_pages.changes = {"connection": made}
    assert "This is a test account." in browser.get(PAGE).text


@pytest.mark.parametrize("failure", FAILURES)
def test_every_failure_has_a_sentence_and_its_status(
    browser: FlaskClient, fake: FakeServices, failure: type[errors.FlowFailure]
) -> None:
    fake.flow_pages.changes = {"state": FlowState.FAILED, "failure": failure, "connection": None, "can_retry": True}
    answer = browser.get(PAGE)
    assert answer.status_code == failure.status
    assert heading(answer.text).replace("&#39;", "'") == failure.heading.format(
        provider="Stripe", host="Acme Analytics"
    )
    assert "{" not in answer.text
    assert FLOW in answer.text
    again = "Choose another account" if failure is errors.AccountTaken else "Try again"
    assert (f">{again}</button>" in answer.text) is (failure.verdict is not errors.Verdict.CONFIGURATION)
    assert ("<title>Error: " in answer.text) is (failure.status >= 400)


@pytest.mark.parametrize("state", [FlowState.EXPIRED, FlowState.INTERRUPTED])
def test_an_end_without_a_recorded_reason_still_has_a_sentence(
    browser: FlaskClient, fake: FakeServices, state: FlowState
) -> None:
    fake.flow_pages.changes = {"state": state, "failure": None, "connection": None}
    page = browser.get(PAGE).text
    assert "Try again" not in page
    assert "go back to Acme Analytics for a new one" in page


@pytest.mark.parametrize(
    ("hold", "words", "form"),
    [
        (Hold.CHOICE, "One more step", f"{PAGE}/choose"),
        (Hold.INSTALLATION, "One more step at Stripe", f"{PAGE}/install"),
        (Hold.INSTALLATION, "One more step at Stripe", f"{PAGE}/look-again"),
    ],
)
def test_a_held_flow_offers_the_way_on(
    browser: FlaskClient, fake: FakeServices, hold: Hold, words: str, form: str
) -> None:
    choices = (AccountChoice("1", "<b>one</b>", "Organization"), AccountChoice("2", "two", "User"))
    fake.flow_pages.changes = {**UNFINISHED, "state": FlowState.HELD, "hold": hold, "choices": choices}
    page = browser.get(PAGE).text
    assert heading(page) == words
    assert f'action="{form}"' in page
    assert "<b>" not in page
    assert "button-primary" in page
    assert ("personal account" in page) is ("organisation" in page) is (hold is Hold.CHOICE)


@pytest.mark.parametrize("state", [FlowState.LEFT, FlowState.REDEEMING])
def test_an_unfinished_flow_says_where_it_stands(browser: FlaskClient, fake: FakeServices, state: FlowState) -> None:
    fake.flow_pages.changes = {**UNFINISHED, "state": state}
    page = browser.get(PAGE).text
    assert ("http-equiv" in page) is (state is FlowState.REDEEMING)
    assert fake.sessions.opened == []


def test_the_ways_on_call_one_use_case_each(browser: FlaskClient, fake: FakeServices) -> None:
    assert post(browser, f"{PAGE}/start/github").headers["Location"] == PROVIDER_PAGE
    assert post(browser, f"{PAGE}/install").headers["Location"] == PROVIDER_PAGE
    assert post(browser, f"{PAGE}/choose", account="42").headers["Location"] == PAGE
    assert [call[:3] for call in fake.flows.calls[::2]] == [("begin_again", FLOW, "github"), ("choose", FLOW, "42")]
    assert fake.flows.calls[1][:2] == ("install_again", FLOW)


def test_choosing_nothing_asks_again(browser: FlaskClient, fake: FakeServices) -> None:
    choices = (AccountChoice("1", "one", "User"), AccountChoice("2", "two", "User"))
    fake.flow_pages.changes = {**UNFINISHED, "state": FlowState.HELD, "hold": Hold.CHOICE, "choices": choices}
    answer = post(browser, f"{PAGE}/choose")
    assert answer.status_code == 303
    assert "Choose one of the accounts." in browser.get(answer.headers["Location"]).text
    assert fake.flows.calls == []


@pytest.mark.parametrize(
    ("failure", "way"),
    [(errors.FlowEnded(), True), (errors.TooManyFlows(), True), (errors.LinkExpired(), False)],
)
def test_a_refused_step_leads_back_where_that_helps(
    browser: FlaskClient, fake: FakeServices, failure: errors.Refused, way: bool
) -> None:
    fake.flows.failure = failure
    answer = post(browser, f"{PAGE}/install")
    assert answer.status_code == failure.status
    assert (f'href="{PAGE}">Open the page again</a>' in answer.text) is way


def test_a_stale_form_leads_back_to_its_page(browser: FlaskClient) -> None:
    for form, page in ((f"{LINK}/start/stripe", LINK), (f"{PAGE}/choose", PAGE), ("/demo/manage", "/demo/")):
        answer = browser.post(form)
        assert answer.status_code == 400
        assert f'href="{page}">Open the page again</a>' in answer.text
    assert "Open the page again" not in browser.post("/sign-out").text


# --- the session that follows -------------------------------------------------------------------------


def test_a_saved_connection_signs_its_browser_in_once(browser: FlaskClient, fake: FakeServices) -> None:
    browser.get(PAGE)
    browser.get(PAGE)
    assert fake.sessions.opened == [(7, 3)]
    cookie = browser.get_cookie("broker_session")
    assert cookie is not None
    assert cookie.value == SESSION
    assert cookie.max_age == 1800


def test_nobody_is_signed_in_long_after_or_ahead_of_the_person(browser: FlaskClient, fake: FakeServices) -> None:
    browser.head(PAGE)
    browser.get(PAGE, headers={"Sec-Purpose": "prefetch"})
    fake.flow_pages.changes = {"ended_at": NOW - timedelta(minutes=30)}
    browser.get(PAGE)
    assert fake.sessions.opened == []


@pytest.mark.parametrize(("end_user", "link", "again"), [(7, None, False), (7, 3, False), (7, 9, True), (8, 3, True)])
def test_a_session_of_another_person_or_link_is_replaced(
    browser: FlaskClient, fake: FakeServices, end_user: int, link: int | None, again: bool
) -> None:
    fake.sessions.current = SignedIn(end_user, link, None, NOW)
    browser.set_cookie("broker_session", SESSION)
    browser.get(PAGE)
    assert fake.sessions.opened == ([(7, 3)] if again else [])
    assert fake.sessions.ended == ([SESSION] if again else [])


@pytest.mark.parametrize(("ended", "replaced"), [(timedelta(), False), (timedelta(minutes=1), True)])
def test_a_page_from_before_somebody_came_does_not_make_the_browser_another_person_s_again(
    browser: FlaskClient, fake: FakeServices, ended: timedelta, replaced: bool
) -> None:
    fake.sessions.current = SignedIn(8, None, None, NOW + timedelta(hours=1), NOW)
    fake.flow_pages.changes = {"ended_at": NOW + ended}
    browser.set_cookie("broker_session", SESSION)
    browser.get(PAGE)
    assert fake.sessions.opened == ([(7, 3)] if replaced else [])


def test_who_is_being_forgotten_sees_the_page_and_is_not_signed_in(browser: FlaskClient, fake: FakeServices) -> None:
    fake.sessions.erased = 7
    assert browser.get(PAGE).status_code == 200
    assert browser.get_cookie("broker_session") is None


def test_a_manage_link_opens_the_persons_whole_page(client: FlaskClient, fake: FakeServices) -> None:
    fake.links.changes = {"manage": True}
    answer = post(client, f"{LINK}/open")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/connections")
    assert fake.sessions.opened == [(7, None)]


def test_an_ordinary_link_opens_no_page(client: FlaskClient, fake: FakeServices) -> None:
    assert post(client, f"{LINK}/open").status_code == 404
    assert fake.sessions.opened == []


# --- a person's own accounts --------------------------------------------------------------------------


def test_accounts_need_a_session(client: FlaskClient) -> None:
    for path in ("/connections", "/connections/9QD2-7F3K-M4TX"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert "Go back to Acme Analytics to open it again." in answer.text
        assert "See your accounts" not in answer.text


def test_accounts_show_their_status_in_words(client: FlaskClient, fake: FakeServices) -> None:
    fake.sessions.current = SignedIn(7, None, None, NOW)
    client.set_cookie("broker_session", SESSION)
    assert "No accounts connected yet" in client.get("/connections").text
    fake.connections.items = [connection(Status.REVOKED, ref="AAAA-AAAA-AAAA"), connection(Status.UNKNOWN)]
    page = client.get("/connections").text
    assert "1 account needs attention." in page
    assert "Access removed" in page
    assert "Connected · not checked yet" in page
    assert "<time datetime=" in page
    assert "Lind Ceramics" in client.get("/connections/9QD2-7F3K-M4TX").text
    unknown = client.get("/connections/ZZZZ-ZZZZ-ZZZZ")
    assert unknown.status_code == 404
    assert 'href="/connections">See your accounts</a>' in unknown.text


MINE = "/connections/9QD2-7F3K-M4TX"
STRIPE_PAGE = "https://dashboard.stripe.com/settings/apps"
EVIL_ACCOUNT = AccountView("acct_1", "<b>Lind</b>", "standard", "live")


@pytest.fixture
def owner(client: FlaskClient, fake: FakeServices) -> FlaskClient:
    """The browser of somebody with one connection."""
    fake.sessions.current = SignedIn(7, None, None, NOW)
    client.set_cookie("broker_session", SESSION)
    fake.connections.items = [connection(account=EVIL_ACCOUNT, manage_url=STRIPE_PAGE)]
    return client


def ended(revocation: str, removal: str = "done") -> ConnectionView:
    parts = (EndingPart(CleanUp(state), "", None) for state in (revocation, removal))
    return connection(
        Status.DISCONNECTED, disconnected_at=NOW, ending=Ending(*parts), account=EVIL_ACCOUNT, manage_url=STRIPE_PAGE
    )


def test_disconnecting_is_asked_for_on_a_page_of_its_own(owner: FlaskClient, fake: FakeServices) -> None:
    for path in ("/connections", MINE):
        assert f'href="{MINE}/disconnect"' in owner.get(path).text
    page = owner.get(f"{MINE}/disconnect")
    assert page.status_code == 200
    assert "Disconnect &lt;b&gt;Lind&lt;/b&gt; (Stripe)?" in heading(page.text)
    for words in ("What stops", "What stays", "The access you allowed at Stripe ends.", "Keep connected", STRIPE_PAGE):
        assert words in page.text
    assert "<b>" not in page.text
    assert fake.disconnections.requested == []


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (Effect(is_shared=True, ends_access=False, stays=""), "stays on because this account is used elsewhere"),
        (Effect(is_shared=False, ends_access=True, stays="the app&"), "the app&amp;, until you remove it there"),
        (Effect(is_shared=False, ends_access=False, stays=""), "allowed at Stripe, until you remove it there"),
    ],
)
def test_the_page_says_what_stays_at_the_provider(
    owner: FlaskClient, fake: FakeServices, effect: Effect, words: str
) -> None:
    fake.disconnections.would = effect
    page = owner.get(f"{MINE}/disconnect").text
    assert words in page
    assert "The access you allowed at Stripe ends." not in page


def test_disconnecting_is_one_use_case_in_the_persons_name(owner: FlaskClient, fake: FakeServices) -> None:
    answer = post(owner, f"{MINE}/disconnect")
    assert (answer.status_code, answer.headers["Location"]) == (303, MINE)
    assert fake.disconnections.requested == [("9QD2-7F3K-M4TX", Actor("end_user", "jo-lind"))]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_somebody_elses_account_cannot_be_disconnected_and_does_not_exist(
    owner: FlaskClient, fake: FakeServices, method: str
) -> None:
    path = "/connections/ZZZZ-ZZZZ-ZZZZ/disconnect"
    answer = owner.get(path) if method == "GET" else post(owner, path)
    assert answer.status_code == 404
    assert fake.disconnections.requested == []


def test_disconnecting_needs_a_session(client: FlaskClient, fake: FakeServices) -> None:
    assert client.get(f"{MINE}/disconnect").status_code == 401
    assert post(client, f"{MINE}/disconnect").status_code == 401
    assert fake.disconnections.requested == []


@pytest.mark.parametrize(
    ("revocation", "removal", "words", "waits"),
    [
        ("done", "done", "&lt;b&gt;Lind&lt;/b&gt; is disconnected.", False),
        ("not_needed", "done", "is disconnected.", False),
        ("pending", "done", "we are still ending the access at Stripe.", True),
        ("done", "pending", "we are still clearing up after it", True),
        ("refused", "done", "Stripe keeps the access until you remove it there.", False),
    ],
)
def test_a_disconnected_account_says_what_is_still_to_be_done(
    owner: FlaskClient, fake: FakeServices, revocation: str, removal: str, words: str, waits: bool
) -> None:
    fake.connections.items = [ended(revocation, removal)]
    page = owner.get(MINE).text
    assert words in page
    assert ("data-poll" in page) is ("Check again" in page) is waits
    assert STRIPE_PAGE in page
    assert 'role="status"' in page
    assert "/disconnect" not in page
    assert "/disconnect" not in owner.get("/connections").text


def test_what_is_disconnected_is_not_asked_about_again(owner: FlaskClient, fake: FakeServices) -> None:
    fake.connections.items = [ended("done")]
    assert owner.get(f"{MINE}/disconnect").headers["Location"] == MINE
    assert post(owner, f"{MINE}/disconnect").headers["Location"] == MINE


def test_signing_out_ends_the_session_here_too(client: FlaskClient, fake: FakeServices) -> None:
    client.set_cookie("broker_session", SESSION)
    answer = post(client, "/sign-out")
    assert answer.headers["Location"] == "/signed-out"
    assert fake.sessions.ended == [SESSION]
    assert client.get_cookie("broker_session") is None
    assert heading(client.get("/signed-out").text) == "You are signed out"


def test_signing_out_leaves_nothing_that_could_sign_this_browser_in_again(
    browser: FlaskClient, fake: FakeServices
) -> None:
    browser.get(PAGE)
    assert fake.sessions.opened == [(7, 3)]
    post(browser, "/sign-out")
    assert browser.get_cookie("broker_session") is None
    assert browser.get_cookie("broker_browser") is None


def test_a_session_that_a_saved_connection_opens_is_over_half_an_hour_after_it(
    browser: FlaskClient, fake: FakeServices
) -> None:
    fake.clock.advance(20 * 60)
    browser.get(PAGE)
    assert fake.sessions.lives == [timedelta(minutes=10)]
