"""Every state of the pages, each reached by what a person, a host or a provider really does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import requests
from playwright.sync_api import BrowserContext, Page, Request, Response, expect

from tests.browser.conftest import Host
from tests.browser.watch import Watch
from tests.e2e.world import World, eventually, free_port
from tests.house import open_house

OPERATOR, PASSWORD = "operator@example.com", "a-password-that-is-long-enough"
LONG_ADDRESS = "maximiliane.featherstonehaugh-cholmondeley@a-rather-long-company-name.example"


@dataclass
class Scene:
    """One person on their way, and everybody they deal with."""

    world: World
    host: Host
    page: Page
    watch: Watch
    end_user: str
    strangers: Callable[[], BrowserContext]

    # --- what is done --------------------------------------------------------------------------------------

    def link(self, *, back: bool = True, **more: Any) -> str:
        """Make a link for this person."""
        if back:
            more["return_url"] = "https://host.example/settings"
        return self.host.link(self.end_user, **more)

    def answers(self, auto: str | None, account: str | None = None) -> None:
        """Say how the consent pages are answered; without an account by somebody nobody has seen."""
        self.world.control("consent", auto=auto, account=account)

    def fault(self, on: str, **fault: Any) -> None:
        """Let something fail until the end of this scene."""
        self.world.control("faults", on=on, **fault)

    def sequin(self, method: str, what: str, **body: Any) -> None:
        """Change something in Sequin behind the broker's back."""
        token = {"Authorization": f"Bearer {self.world.environment['SEQUIN_API_TOKEN']}"}
        address = f"{self.world.sandbox_url}/sequin/v1/{what}"
        requests.request(method, address, headers=token, json=body or None, timeout=60).raise_for_status()

    def go(self, address: str) -> Response:
        """Open an address or a path of the broker."""
        answer = self.page.goto(address if "://" in address else self.world.url + address)
        assert answer is not None
        return answer

    def press(self, name: str) -> None:
        """Click a button."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def leave(self, provider: str, link: str | None = None) -> dict[str, str]:
        """Press Connect while consent pages wait for a person; return what the provider was asked."""
        self.answers(None)
        self.go(link or self.link())
        self.press(f"Connect {provider}")
        expect(self.page.get_by_text("stands in for")).to_be_visible()
        return {name: values[0] for name, values in parse_qs(urlsplit(self.page.url).query).items()}

    def come_back(self, app: str, **query: str) -> None:
        """Arrive as a provider sends people back."""
        self.go(f"/oauth/{app}/callback?{urlencode(query)}")

    def connect(self, provider: str = "Stripe", link: str | None = None, *, imported: bool = True) -> None:
        """Connect an account from link to final page."""
        self.go(link or self.link())
        self.press(f"Connect {provider}")
        expect(self.page.get_by_role("heading", name=f"{provider} is connected")).to_be_visible()
        if imported:
            expect(self.page.get_by_text("Everything is set up.")).to_be_visible()
            # The page looks again until the first check was made.
            expect(self.page.locator(".badge-ok")).to_have_text("Connected")

    def webhook(self, url: str, description: str, **more: Any) -> str:
        """Register an address that is told what happens, and return its id."""
        answer = self.host.api("POST", "webhook-endpoints", json={"url": url, "description": description, **more})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def sign_in(self) -> None:
        """Sign in as an operator."""
        self.go("/ops/sign-in")
        self.page.get_by_label("E-mail").fill(OPERATOR)
        self.page.get_by_label("Password", exact=True).fill(PASSWORD)
        self.press("Sign in")
        expect(self.page.get_by_role("heading", name="Connections", exact=True)).to_be_visible()


@dataclass(frozen=True)
class State:
    """A page in one state: how to get there, and what it must say."""

    name: str
    reach: Callable[[Scene], None]
    heading: str
    status: int
    primary: str | None
    error: bool


STATES: list[State] = []


def state(
    heading: str, *, status: int = 200, primary: str | None = None, error: bool = False
) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Add a state; `heading` is a pattern, `primary` the text of a main button; an `error`'s title says so."""

    def add(reach: Callable[[Scene], None]) -> Callable[[Scene], None]:
        name = reach.__name__.replace("_", "-")
        STATES.append(State(name, reach, heading, status, primary, error))
        return reach

    return add


# --- the link's page ------------------------------------------------------------------------------------


@state("Connect your accounts", primary="Connect Stripe")
def link_first_time(scene: Scene) -> None:
    scene.go(scene.link())


@state("Connect Stripe to Acme Analytics", primary="Connect Stripe")
def link_one_provider(scene: Scene) -> None:
    scene.go(scene.host.link(scene.end_user, apps=["stripe"], return_url="https://host.example/"))
    expect(scene.page.get_by_role("link", name="Cancel and go back")).to_be_visible()


@state("Connect your accounts", primary="Connect Stripe")
def link_long_words(scene: Scene) -> None:
    scene.end_user = LONG_ADDRESS.partition("@")[0] + scene.end_user
    scene.go(scene.link())


@state("Connect your accounts", primary="Connect GitHub")
def link_some_connected(scene: Scene) -> None:
    link = scene.link()
    scene.connect("Stripe", link)
    scene.go(link)
    expect(scene.page.get_by_text("was connected with this link")).to_be_visible()


@state("Connect your accounts")
def link_all_connected(scene: Scene) -> None:
    link = scene.link()
    scene.connect("Stripe", link)
    scene.connect("GitHub", link)
    scene.go(link)
    expect(scene.page.get_by_text("was connected with this link")).to_have_count(2)


@state("Connect your accounts", primary="Connect Stripe")
def link_unfinished(scene: Scene) -> None:
    link = scene.link()
    scene.leave("Stripe", link)
    scene.go(link)
    expect(scene.page.get_by_text("but did not finish")).to_be_visible()


@state("Connect your accounts", primary="Connect GitHub")
def link_needs_attention(scene: Scene) -> None:
    link = scene.link()
    _fail_a_check(scene, link)
    scene.go(link)
    expect(scene.page.locator(".card").first).to_contain_text("Reconnect it to go on.")


@state("Verbinden Sie Ihre Konten", primary="Stripe verbinden")
def link_german(scene: Scene) -> None:
    scene.go(scene.link() + "?lang=de")
    assert scene.page.locator("html").get_attribute("lang") == "de"


@state("Connect your accounts", primary="Connect Stripe")
def link_dark_by_address(scene: Scene) -> None:
    scene.go(scene.link() + "?theme=dark")
    ground = scene.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(13, 17, 23)"


@state("This link has expired", status=410, error=True)
def link_expired(scene: Scene) -> None:
    link = scene.link(expires_in=1)
    eventually(lambda: scene.go(link).status == 410)


@state("This link does not work", status=404, error=True)
def link_unknown(scene: Scene) -> None:
    scene.go("/connect/this-link-was-never-made-by-anybody-0123456789")


@state("This link has already been used", status=410, error=True)
def link_used(scene: Scene) -> None:
    link = scene.link(apps=["stripe"])
    stranger = scene.strangers().new_page()
    stranger.goto(link)
    stranger.get_by_role("button", name="Connect Stripe", exact=True).click()
    expect(stranger.get_by_role("heading", name="Stripe is connected")).to_be_visible()
    scene.go(link)


@state("Open this link in the browser you started from", status=403, error=True)
def link_other_browser(scene: Scene) -> None:
    link = scene.link()
    scene.answers(None)
    stranger = scene.strangers().new_page()
    stranger.goto(link)
    stranger.get_by_role("button", name="Connect Stripe", exact=True).click()
    expect(stranger.get_by_text("stands in for")).to_be_visible()
    scene.go(link)


@state("Your connected accounts", primary="Show my accounts")
def link_manage(scene: Scene) -> None:
    scene.go(scene.link(manage=True))


# --- after coming back ----------------------------------------------------------------------------------


@state("Stripe is connected", primary="Back to Acme Analytics")
def done_pending(scene: Scene) -> None:
    scene.fault("sequin.import", fault="status", status=503)
    scene.connect(imported=False)
    expect(scene.page.get_by_text("We are finishing set-up.")).to_be_visible()


@state("Stripe is connected", primary="Back to Acme Analytics")
def done_imported(scene: Scene) -> None:
    scene.connect()


@state("Stripe is connected", primary="Back to Acme Analytics")
def done_again(scene: Scene) -> None:
    scene.answers("allow", f"acct_1{scene.end_user.replace('-', '')}")
    scene.connect()
    scene.connect()
    expect(scene.page.get_by_text("You had connected")).to_be_visible()


@state("Stripe ist verbunden", primary="Zurück zu Acme Analytics")
def done_german(scene: Scene) -> None:
    done_imported(scene)
    scene.go(scene.page.url + "?lang=de")


@state("GitHub is connected", primary="Back to Acme Analytics")
def done_github(scene: Scene) -> None:
    scene.connect("GitHub")


@state("We could not finish connecting Stripe", primary="Back to Acme Analytics")
def done_parked(scene: Scene) -> None:
    scene.fault("sequin.import", fault="status", status=422)
    scene.go(scene.link())
    scene.press("Connect Stripe")
    expect(scene.page.get_by_role("heading", name="We could not finish")).to_be_visible()
    expect(scene.page.get_by_role("button", name="Try again")).to_be_visible()


@state("Stripe is connected")
def done_without_a_way_back(scene: Scene) -> None:
    scene.connect(link=scene.link(back=False))


@state("Stripe was not connected", primary="Try again")
def denied(scene: Scene) -> None:
    scene.answers("deny")
    scene.go(scene.link())
    scene.press("Connect Stripe")


@state("Stripe could not complete the connection", primary="Try again")
def provider_error(scene: Scene) -> None:
    asked = scene.leave("Stripe")
    scene.come_back("stripe", error="server_error", error_description="<b>Boom</b>", state=asked["state"])
    scene.page.get_by_text("Show details").click()
    expect(scene.page.locator("details code")).to_have_text("server_error")


@state("The connection was interrupted", status=502, primary="Try again", error=True)
def interrupted(scene: Scene) -> None:
    scene.fault("stripe.token", fault="reset", when="after")
    scene.go(scene.link())
    scene.press("Connect Stripe")


@state("Finishing with Stripe")
def finishing(scene: Scene) -> None:
    scene.fault("stripe.account", fault="status", status=503)
    scene.go(scene.link())
    scene.press("Connect Stripe")


@state("We could not match this to a request", status=400, error=True)
def state_unknown(scene: Scene) -> None:
    scene.come_back("stripe", code="ac_0123456789", state="this-was-never-issued-by-anybody-012345678")


@state("This Stripe account is already connected", status=409, primary="Choose another account", error=True)
def account_taken(scene: Scene) -> None:
    account = "acct_1ContestedAccount"
    scene.answers("allow", account)
    stranger = scene.strangers().new_page()
    stranger.goto(scene.host.link(f"{scene.end_user}-rival"))
    stranger.get_by_role("button", name="Connect Stripe", exact=True).click()
    scene.go(scene.link())
    scene.press("Connect Stripe")
    assert f"{scene.end_user}-rival" not in scene.page.content()


# --- GitHub ---------------------------------------------------------------------------------------------


@state("One more step", primary="Connect this account")
def choice(scene: Scene) -> None:
    scene.answers("allow", "many-mona")
    scene.go(scene.link())
    scene.press("Connect GitHub")
    expect(scene.page.get_by_role("radio", name="globex-pottery")).to_be_visible()


@state("One more step", primary="Connect this account")
def choice_not_made(scene: Scene) -> None:
    choice(scene)
    # Browsers insist on a choice; the page also answers those who do not.
    scene.page.locator("input[name=account]").evaluate_all("all => all.forEach(e => e.removeAttribute('required'))")
    scene.press("Connect this account")
    expect(scene.page.get_by_role("alert")).to_contain_text("Choose one of the accounts.")


@state("One more step at GitHub", primary="Continue to GitHub")
def installation(scene: Scene) -> None:
    callbacks = _install_page(scene)
    scene.go(callbacks[0])


@state("Waiting for an owner to approve", primary="Back to Acme Analytics")
def waiting_for_approval(scene: Scene) -> None:
    _install_page(scene)
    asked = parse_qs(urlsplit(scene.page.url).query)
    scene.go(f"/oauth/github/setup?{urlencode({'setup_action': 'request', 'state': asked['state'][0]})}")
    expect(scene.page.get_by_role("button", name="Check again")).to_be_visible()


@state("Waiting for an owner to approve", primary="Back to Acme Analytics")
def waiting_for_known_owners(scene: Scene) -> None:
    """Asked by somebody who reaches another organisation without being its owner."""
    scene.leave("GitHub")
    _authorize_as_member(scene)
    scene.press("Choose another account")
    _authorize_as_member(scene)
    scene.page.get_by_role("radio", name="tidewater-coop").check()
    scene.press("Request")
    expect(scene.page.get_by_text("has asked the owners of tidewater-coop")).to_be_visible()


@state("Your connected accounts")
def connections_waiting(scene: Scene) -> None:
    waiting_for_known_owners(scene)
    scene.page.get_by_role("link", name="See your accounts").click()
    expect(scene.page.get_by_text("An owner of this account has to approve")).to_be_visible()


@state("tidewater-coop")
def connection_waiting(scene: Scene) -> None:
    connections_waiting(scene)
    scene.page.get_by_role("link", name="Details of tidewater-coop").click()
    expect(scene.page.get_by_role("button", name="Check again")).to_be_visible()


@state("Stop waiting for tidewater-coop")
def stop_waiting(scene: Scene) -> None:
    connection_waiting(scene)
    scene.page.get_by_role("link", name="Stop waiting").click()
    expect(scene.page.get_by_text("We no longer wait for an owner")).to_be_visible()


@state("tidewater-coop|GitHub")
def stopped_waiting(scene: Scene) -> None:
    stop_waiting(scene)
    scene.press("Stop waiting for tidewater-coop")
    expect(scene.page.get_by_role("status").filter(has_text="no longer wait")).to_be_visible()


def _authorize_as_member(scene: Scene) -> None:
    scene.page.get_by_role("radio", name="member-max").check()
    scene.press("Authorize")


@state("Approved. Thank you.")
def approved_elsewhere(scene: Scene) -> None:
    scene.go("/oauth/github/setup?installation_id=4711&setup_action=install")


@state("You cannot connect this GitHub account", status=403, primary="Try again", error=True)
def not_permitted(scene: Scene) -> None:
    scene.answers("allow", "member-max")
    scene.go(scene.link())
    scene.press("Connect GitHub")


@state("Access to this GitHub account is suspended", primary="Try again")
def suspended(scene: Scene) -> None:
    scene.answers("allow", "paused-pat")
    scene.go(scene.link())
    scene.press("Connect GitHub")


def _install_page(scene: Scene) -> list[str]:
    """Walk to GitHub's installation page; return the callbacks on the way."""
    callbacks: list[str] = []

    def note(request: Request) -> None:
        if "/oauth/github/callback" in request.url:
            callbacks.append(request.url)

    scene.page.on("request", note)
    scene.leave("GitHub")
    scene.press("Authorize")
    expect(scene.page.get_by_role("heading", name=re.compile("^Install "))).to_be_visible()
    return callbacks


# --- the person's accounts ------------------------------------------------------------------------------


@state("Your connected accounts")
def connections(scene: Scene) -> None:
    link = scene.link()
    scene.connect("Stripe", link)
    scene.connect("GitHub", link)
    scene.page.get_by_role("link", name="See your accounts").click()
    expect(scene.page.locator(".badge-ok")).to_have_count(2)


@state("Your connected accounts")
def connections_none(scene: Scene) -> None:
    scene.go(scene.link(manage=True))
    scene.press("Show my accounts")
    expect(scene.page.get_by_text("No accounts connected yet")).to_be_visible()


@state("Your connected accounts")
def connections_pending(scene: Scene) -> None:
    done_pending(scene)
    scene.page.get_by_role("link", name="See your accounts").click()
    expect(scene.page.get_by_text("Finishing set-up", exact=True)).to_be_visible()


@state("New Account")
def connection_details(scene: Scene) -> None:
    scene.connect()
    scene.page.get_by_role("link", name="See your accounts").click()
    scene.page.get_by_role("link", name=re.compile("^New Account")).click()
    expect(scene.page.get_by_text("Reference")).to_be_visible()


@state("New Account")
def connection_checked(scene: Scene) -> None:
    connection_details(scene)
    scene.press("Check now")
    expect(scene.page.get_by_text("This account was just checked.")).to_be_visible()


@state("New Account")
def connection_needs_attention(scene: Scene) -> None:
    _fail_a_check(scene, scene.link())


def _fail_a_check(scene: Scene, link: str) -> None:
    """Connect an account and let a check of it fail."""
    scene.connect(link=link)
    # Sequin knows nothing of it any more.
    scene.world.control("reset")
    scene.answers("allow")
    scene.page.get_by_role("link", name="See your accounts").click()
    scene.page.get_by_role("link", name=re.compile("^New Account")).click()
    scene.press("Check now")
    expect(scene.page.get_by_role("alert")).to_contain_text("Reconnect it to go on.")


@state("Your connected accounts")
def connections_need_attention(scene: Scene) -> None:
    connection_needs_attention(scene)
    scene.page.get_by_role("link", name="All your accounts").click()
    expect(scene.page.get_by_role("alert")).to_contain_text("1 account needs attention.")


@state("Your connected accounts")
def connections_many(scene: Scene) -> None:
    _manage_many(scene)
    expect(scene.page.get_by_text("Page 1 of 2")).to_be_visible()


@state("Your connected accounts")
def connections_searched(scene: Scene) -> None:
    _manage_many(scene)
    scene.page.get_by_label("Search").fill("account 2")
    scene.press("Search")
    expect(scene.page.get_by_role("status")).to_contain_text("match")


@state("Ihre verbundenen Konten")
def connections_german(scene: Scene) -> None:
    connections(scene)
    scene.page.get_by_role("link", name="Deutsch").click()
    expect(scene.page.get_by_text("Darf lesen").first).to_be_visible()


@state("New Account")
def connection_details_german(scene: Scene) -> None:
    connection_details(scene)
    scene.page.get_by_role("link", name="Deutsch").click()
    expect(scene.page.get_by_text("Verlauf")).to_be_visible()


def _manage_many(scene: Scene) -> None:
    """Open the page of somebody with more accounts than one page shows."""
    with open_house(scene.world.database_url) as house:
        person = house.end_user(scene.end_user)
        for _ in range(27):
            house.connection(person)
    scene.go(scene.link(manage=True))
    scene.press("Show my accounts")


@state("Disconnect New Account")
def disconnect(scene: Scene) -> None:
    connection_details(scene)
    scene.page.get_by_role("link", name=re.compile("^Disconnect")).click()


@state("Your connected accounts|New Account")
def disconnected(scene: Scene) -> None:
    disconnect(scene)
    scene.page.get_by_role("button", name=re.compile("^Disconnect")).click()
    expect(scene.page.get_by_role("status").filter(has_text="disconnected")).to_be_visible()


@state("This page has closed", status=401, error=True)
def session_ended(scene: Scene) -> None:
    scene.go("/connections")


@state("You are signed out")
def signed_out(scene: Scene) -> None:
    scene.connect()
    scene.page.get_by_role("link", name="See your accounts").click()
    scene.press("Sign out")


@state("Page not found", status=404, error=True)
def not_found(scene: Scene) -> None:
    scene.go("/this-page-does-not-exist")


@state("That request was not understood", status=400, error=True)
def form_expired(scene: Scene) -> None:
    scene.go(scene.link())
    scene.page.context.clear_cookies()
    scene.press("Connect Stripe")
    expect(scene.page.get_by_role("link", name="Open the page again")).to_be_visible()


# --- operators ------------------------------------------------------------------------------------------


@state("Sign in", primary="Sign in")
def ops_sign_in(scene: Scene) -> None:
    scene.go("/ops/")
    assert urlsplit(scene.page.url).path == "/ops/sign-in"


@state("Sign in", status=401, primary="Sign in", error=True)
def ops_sign_in_wrong(scene: Scene) -> None:
    scene.go("/ops/sign-in")
    scene.page.get_by_label("E-mail").fill(OPERATOR)
    scene.page.get_by_label("Password", exact=True).fill("not the password")
    scene.press("Sign in")
    expect(scene.page.get_by_role("alert")).to_be_visible()


@state("Sign in", primary="Sign in")
def ops_signed_out(scene: Scene) -> None:
    scene.sign_in()
    scene.press("Sign out")
    expect(scene.page.get_by_text("You have signed out")).to_be_visible()


@state("Connections", primary="Search")
def ops_list(scene: Scene) -> None:
    done_parked(scene)
    scene.world.control("reset")
    scene.answers("allow")
    scene.connect("GitHub")
    scene.sign_in()
    expect(scene.page.get_by_role("table")).to_be_visible()


@state("Connections", primary="Search")
def ops_list_no_match(scene: Scene) -> None:
    scene.sign_in()
    scene.page.get_by_label("Search").fill("nothing-has-this-name")
    scene.press("Search")
    expect(scene.page.get_by_text("No connections match")).to_be_visible()


@state("Connections", status=400, primary="Apply filters", error=True)
def ops_list_bad_filter(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/connections?status=wonderful")
    status = scene.page.get_by_label("Status")
    expect(status).to_have_attribute("aria-invalid", "true")
    expect(status).to_have_accessible_description("There is no such status.")
    expect(scene.page.get_by_text("No connections match")).to_be_hidden()


@state("Connections", primary="Apply filters")
def ops_list_filtered(scene: Scene) -> None:
    scene.connect()
    scene.page.context.clear_cookies()
    scene.sign_in()
    scene.go(f"/ops/connections?mode=test&user={scene.end_user}&sort=changed")
    expect(scene.page.get_by_role("list", name="Active filters")).to_contain_text("Mode: test")
    expect(scene.page.get_by_text("1–1 of 1")).to_be_visible()


@state(r"Disconnect: 1 connection\?")
def ops_bulk_confirm(scene: Scene) -> None:
    scene.connect()
    scene.page.context.clear_cookies()
    scene.sign_in()
    scene.go(f"/ops/connections?user={scene.end_user}")
    scene.page.get_by_role("checkbox", name=re.compile("^Pick New Account")).check()
    scene.press("Disconnect…")
    expect(scene.page.get_by_role("table")).to_contain_text("New Account")


@state("No connection is selected", status=409, error=True)
def ops_bulk_nothing_picked(scene: Scene) -> None:
    scene.connect()
    scene.page.context.clear_cookies()
    scene.sign_in()
    scene.go("/ops/connections")
    scene.press("Check now…")
    expect(scene.page.get_by_text("tick some")).to_be_visible()


@state("Import again: 1 connection")
def ops_bulk_run(scene: Scene) -> None:
    scene.connect()
    scene.page.context.clear_cookies()
    scene.sign_in()
    scene.go(f"/ops/connections?user={scene.end_user}")
    scene.page.get_by_role("checkbox", name="All that match, on every page, instead of those picked").check()
    scene.press("Import again…")
    scene.press("Import again: 1 connection")
    # The page comes again by itself until the worker is through.
    expect(scene.page.get_by_text("Finished.")).to_be_visible(timeout=60_000)


@state("Create connect link", primary="Create link")
def ops_link_new(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/links/new")


@state("Create connect link", status=422, primary="Create link", error=True)
def ops_link_wrong(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/links/new")
    scene.page.get_by_label("End user id").fill(scene.end_user)
    scene.page.get_by_label("Return address").fill("https://elsewhere.example/")
    scene.press("Create link")
    expect(scene.page.get_by_label("Return address")).to_have_attribute("aria-invalid", "true")


@state("Connect link created", status=201)
def ops_link_created(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/links/new")
    scene.page.get_by_label("End user id").fill(scene.end_user)
    scene.press("Create link")


@state("Connect links")
def ops_links(scene: Scene) -> None:
    scene.connect()
    scene.link()
    scene.page.context.clear_cookies()
    scene.sign_in()
    scene.go("/ops/links")
    expect(scene.page.get_by_text("Not opened").first).to_be_visible()


@state("Connect links")
def ops_links_in_no_state(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/links?state=revoked")
    expect(scene.page.get_by_role("navigation", name="State")).to_be_visible()


@state("Revoke the link for person-")
def ops_link_revoke(scene: Scene) -> None:
    scene.link()
    scene.sign_in()
    scene.go("/ops/links")
    scene.page.get_by_role("link", name=re.compile("^Revoke lnk_")).first.click()
    expect(scene.page.get_by_role("button", name="Revoke link")).to_be_visible()


@state("Overview")
def ops_overview(scene: Scene) -> None:
    done_parked(scene)
    scene.world.control("reset")
    scene.answers("deny")
    scene.go(scene.link())
    scene.press("Connect Stripe")
    scene.answers("allow")
    scene.connect("GitHub")
    scene.sign_in()
    scene.page.get_by_role("link", name="Overview").click()
    expect(scene.page.get_by_role("heading", name="Failures by reason")).to_be_visible()


@state("Overview")
def ops_overview_tables(scene: Scene) -> None:
    ops_overview(scene)
    scene.page.get_by_role("link", name="24 hours").click()
    tables = scene.page.locator("figure summary")
    for number in range(tables.count()):
        tables.nth(number).click()
    expect(scene.page.get_by_role("link", name="Table as CSV").last).to_be_visible()


@state("Set-up")
def ops_set_up(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/providers")
    expect(scene.page.get_by_role("heading", name="Addresses to register")).to_be_visible()


@state("Test of Stripe")
def ops_test(scene: Scene) -> None:
    ops_set_up(scene)
    scene.press("Test Stripe (stripe)")
    expect(scene.page.get_by_text("A person would be connected now.")).to_be_visible()


@state("Test of Stripe")
def ops_test_failed(scene: Scene) -> None:
    scene.answers("deny")
    ops_set_up(scene)
    scene.press("Test Stripe (stripe)")
    expect(scene.page.get_by_role("alert")).to_contain_text("consent_denied")


@state("Audit trail", primary="Apply filters")
def ops_audit(scene: Scene) -> None:
    for _ in range(52):
        scene.link()
    scene.sign_in()
    scene.go("/ops/audit?action=link.created")
    scene.page.get_by_role("link", name="Next page").click()
    expect(scene.page.get_by_role("link", name="Previous page")).to_be_visible()


@state("Audit trail", primary="Search")
def ops_audit_no_match(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/audit?target=nothing-has-this-name")
    expect(scene.page.get_by_text("No records match")).to_be_visible()


@state("Audit trail", status=400, primary="Apply filters", error=True)
def ops_audit_bad_filter(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/audit?from=yesterday")


@state("connection.connected")
def ops_audit_record(scene: Scene) -> None:
    scene.connect()
    scene.page.context.clear_cookies()
    scene.sign_in()
    # The worker seals within seconds.
    eventually(lambda: _newest_record(scene, "connection.connected"))


def _newest_record(scene: Scene, action: str) -> bool:
    scene.go(f"/ops/audit?action={action}")
    scene.page.locator("td[data-label=Time] a").first.click()
    return scene.page.get_by_text("Digest").is_visible()


@state("Retry .* parked job")
def ops_jobs_retry(scene: Scene) -> None:
    ops_jobs_parked(scene)
    scene.page.get_by_role("link", name="Retry all parked").click()


@state("Revoke host")
def ops_key_revoke(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/keys")
    scene.page.get_by_role("link", name="Revoke host").first.click()


@state("Jobs")
def ops_jobs_none_parked(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/jobs?state=retrying")


@state("Jobs")
def ops_jobs_parked(scene: Scene) -> None:
    done_parked(scene)
    scene.page.context.clear_cookies()
    scene.sign_in()
    scene.go("/ops/jobs?state=parked")
    expect(scene.page.get_by_role("table")).to_be_visible()


@state("Settings")
def ops_settings(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/settings")


@state("API keys", primary="Create key")
def ops_keys(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/keys")


@state("API key created", status=201)
def ops_key_created(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/keys")
    scene.page.get_by_label("Name").fill("backend in production")
    scene.page.get_by_label("links:write").check()
    scene.press("Create key")


@state("New Account")
def ops_details(scene: Scene) -> None:
    scene.connect()
    _ops_details(scene)


@state("New Account", primary="Retry import")
def ops_details_parked(scene: Scene) -> None:
    done_parked(scene)
    _ops_details(scene)


@state("Page not found", status=404, error=True)
def ops_details_unknown(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/connections/0000-0000-0000")
    expect(scene.page.get_by_role("link", name="All connections")).to_be_visible()
    expect(scene.page.get_by_role("navigation", name="Console")).to_be_visible()


@state("Webhook endpoints")
def ops_webhooks(scene: Scene) -> None:
    scene.webhook("https://hooks.example.com/in", "Billing", events=["connection.imported", "connection.disconnected"])
    scene.sign_in()
    scene.go("/ops/webhooks")
    expect(scene.page.get_by_role("link", name="https://hooks.example.com/in").first).to_be_visible()


@state("Warehouse")
def ops_webhook_failing(scene: Scene) -> None:
    endpoint = scene.webhook(f"http://127.0.0.1:{free_port()}/in", "Warehouse")
    scene.connect()
    scene.page.context.clear_cookies()
    scene.sign_in()
    eventually(lambda: scene.host.api("GET", f"webhook-endpoints/{endpoint}").json()["failing_since"])
    scene.go(f"/ops/webhooks/{endpoint}")
    expect(scene.page.get_by_text("unreachable").first).to_be_visible()


@state("Reports", primary="Switch on")
def ops_webhook_off(scene: Scene) -> None:
    endpoint = scene.webhook("https://reports.example.com/in", "Reports")
    scene.host.api("PATCH", f"webhook-endpoints/{endpoint}", json={"enabled": False})
    scene.sign_in()
    scene.go(f"/ops/webhooks/{endpoint}")


@state("New Account")
def ops_details_drifted(scene: Scene) -> None:
    scene.connect()
    (connection,) = scene.host.connections(scene.end_user)
    scene.sequin("DELETE", f"credentials/{connection['sequin']['credential_id']}")
    scene.sign_in()
    scene.go(f"/ops/connections/{connection['ref']}")
    scene.press("Check now")

    def failed() -> bool:
        scene.go(f"/ops/connections/{connection['ref']}")
        return scene.page.get_by_text("Verified: failed").is_visible()

    eventually(failed)
    expect(scene.page.get_by_role("listitem").filter(has_text="Verified")).to_contain_text("since")


@state("Orphans")
def ops_orphans_none(scene: Scene) -> None:
    scene.sign_in()
    scene.go("/ops/orphans")


@state("Orphans")
def ops_orphans(scene: Scene) -> None:
    stray = {"kind": "stripe_oauth2", "secret": "sk_test_stray", "test": True, "stripe_user_id": "acct_stray"}
    app = scene.world.sequin_app("stripe")
    named = {"broker_connection_id": "AAAA-BBBB-CCCC"}
    scene.sequin("POST", "credentials", oauth_app_id=app, properties=stray, metadata=named)
    scene.world.run("connections", "check", "--all")
    scene.sign_in()
    scene.go("/ops/orphans")
    expect(scene.page.get_by_role("table")).to_be_visible()
    expect(scene.page.get_by_role("button", name=re.compile("^Delete .* in Sequin$"))).to_be_visible()


def _ops_details(scene: Scene) -> None:
    (connection,) = scene.host.connections(scene.end_user)
    scene.sign_in()
    scene.go(f"/ops/connections/{connection['ref']}")
    expect(scene.page.get_by_role("heading", name="Import into Sequin")).to_be_visible()


# --- last, since the broker remembers it: who starts soon after is told before leaving --------------------


@state("Acme Analytics needs to fix a setting", primary="Back to Acme Analytics")
def misconfigured(scene: Scene) -> None:
    scene.fault("stripe.token", fault="status", status=401)
    scene.go(scene.link())
    scene.press("Connect Stripe")
    expect(scene.page.locator(".outcome")).to_contain_text("there is nothing you can do here")
    expect(scene.page.get_by_role("button", name="Try again")).to_be_hidden()
