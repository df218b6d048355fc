"""The pages of signing in at an OpenID provider, in every state, with a provider that we did not write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from broker.web.pages import BRAND_SHEET
from tests.browser import look
from tests.browser.conftest import Host
from tests.browser.states import OPERATOR, PASSWORD
from tests.browser.watch import Watch
from tests.databases import SqliteDatabases
from tests.e2e.openid_provider import PASSWORD as AT_THE_PROVIDER
from tests.e2e.openid_world import OpenIdWorld

COLOR, DARKEST, LIGHTEST = "#9d174d", "#000000", "#767676"
"""A host's colour as somebody would set it, and the two ends of what settings accept."""

LOGO_URL = "https://cdn.acme.example/logo.svg"
# Dark words on nothing, as most logos are made.
LOGO = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 132 32" width="132" height="32"><circle cx="16" cy="16"
r="13" fill="#9d174d"/><text x="38" y="22" font-family="sans-serif" font-size="18" fill="#1b1b1b">Acme Inc</text>
</svg>"""

BRANDING = f"""
[branding]
name = "Acme Analytics"
logo_url = "{LOGO_URL}"
color = "{COLOR}"
support_email = "help@acme.example"
privacy_url = "https://acme.example/privacy"
home_url = "https://app.acme.example"
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sqlite_databases: SqliteDatabases) -> Iterator[OpenIdWorld]:
    """Provider, sandbox and web server; one operator has a password."""
    with sqlite_databases.migrated() as url:
        world = OpenIdWorld(tmp_path_factory.mktemp("world"), url, more=BRANDING)
        try:
            world.start_provider()
            world.start_sandbox()
            world.start_web(workers=1)
            world.run("operator", "create", "--email", OPERATOR, "--role", "viewer", given=f"{PASSWORD}\n")
            world.control("consent", auto="allow")
            yield world
        finally:
            world.stop_all()


@pytest.fixture(scope="module")
def host(world: OpenIdWorld) -> Host:
    """A host's backend, beside those who come by themselves."""
    return Host(world)


@pytest.fixture
def visitor(world: OpenIdWorld, host: Host, context: BrowserContext, watch: Watch, end_user: str) -> Visitor:
    """Somebody in a fresh browser, who sees the host's logo."""
    # The provider's page names no icon, so the browser looks for one that is not there.
    context.route("**/favicon.ico", lambda route: route.fulfill(status=204))
    context.route(LOGO_URL, lambda route: route.fulfill(body=LOGO, content_type="image/svg+xml"))
    return Visitor(world, host, context.new_page(), end_user)


class Visitor:
    """Somebody in a fresh browser."""

    def __init__(self, world: OpenIdWorld, host: Host, page: Page, end_user: str) -> None:
        self.world = world
        self.host = host
        self.page = page
        self.end_user = end_user

    def go(self, path: str) -> None:
        """Open a page of the broker."""
        self.page.goto(self.world.url + path)

    def press(self, name: str) -> None:
        """Click a button."""
        self.page.get_by_role("button", name=name, exact=True).first.click()

    def sign_in(self, name: str, path: str, button: str) -> None:
        """Go to a sign-in page and all the way to the provider and back."""
        self.go(path)
        self.press(button)
        self.page.locator("#id_username").fill(name)
        self.page.locator("#id_password").fill(AT_THE_PROVIDER)
        self.press("Log in")

    @property
    def issuer(self) -> str:
        """What the console calls the provider, which has no label there."""
        return f"127.0.0.1:{self.world.provider_port}"


def sign_in(visitor: Visitor) -> None:
    visitor.go("/sign-in")


def sign_in_german(visitor: Visitor) -> None:
    visitor.go("/sign-in?lang=de")


def sign_in_ended(visitor: Visitor) -> None:
    visitor.go("/sign-in?ended=1&next=/connections")


def sign_in_unavailable(visitor: Visitor) -> None:
    visitor.go("/sign-in?problem=sign_in_unavailable&ref=7F3K-92QD-M4TX")


def sign_in_unproven_german(visitor: Visitor) -> None:
    visitor.go("/sign-in?problem=identity_unproven&ref=7F3K-92QD-M4TX&lang=de")


def state_unknown(visitor: Visitor) -> None:
    visitor.go("/sign-in/callback?state=unknown&code=x")


def connections_to_begin_with(visitor: Visitor) -> None:
    visitor.sign_in("vi", "/connections", "Sign in with Acme")


def connections_with_more_to_connect(visitor: Visitor) -> None:
    visitor.sign_in("jo", "/connections", "Sign in with Acme")
    visitor.press("Connect Stripe")
    expect(visitor.page.get_by_text("Everything is set up.")).to_be_visible()
    visitor.go("/connections")


def signed_out(visitor: Visitor) -> None:
    visitor.sign_in("jo", "/connections", "Sign in with Acme")
    visitor.press("Sign out")


def ops_sign_in(visitor: Visitor) -> None:
    visitor.go("/ops/sign-in?next=/ops/jobs")


def ops_not_permitted(visitor: Visitor) -> None:
    visitor.sign_in("jo", "/ops/sign-in", f"Sign in with {visitor.issuer}")
    expect(visitor.page.get_by_text("jo@example.com")).to_be_visible()


def ops_operators(visitor: Visitor) -> None:
    visitor.sign_in("sam", "/ops/operators", f"Sign in with {visitor.issuer}")


def ops_operator_signed_out(visitor: Visitor) -> None:
    visitor.sign_in("sam", "/ops/operators", f"Sign in with {visitor.issuer}")
    visitor.go("/ops/operators?done=ended")


def ops_signed_out_everywhere(visitor: Visitor) -> None:
    visitor.sign_in("sam", "/ops/settings", f"Sign in with {visitor.issuer}")
    visitor.press("Sign out everywhere")


def branded_connect(visitor: Visitor) -> None:
    visitor.page.goto(visitor.host.link(visitor.end_user, apps=["stripe"], return_url="https://host.example/settings"))


def branded_done(visitor: Visitor) -> None:
    branded_connect(visitor)
    visitor.press("Connect Stripe")
    expect(visitor.page.locator(".badge-ok")).to_have_text("Connected")


def branded_list(visitor: Visitor) -> None:
    branded_done(visitor)
    visitor.page.goto(visitor.host.link(visitor.end_user, manage=True))
    visitor.press("Show my accounts")


def branded_error(visitor: Visitor) -> None:
    visitor.go("/this-page-does-not-exist")


def branded_console(visitor: Visitor) -> None:
    visitor.go("/ops/sign-in")
    visitor.page.get_by_label("E-mail").fill(OPERATOR)
    visitor.page.get_by_label("Password", exact=True).fill(PASSWORD)
    visitor.press("Sign in")


STATES: tuple[tuple[Callable[[Visitor], None], str, int], ...] = (
    (sign_in, "Sign in", 200),
    (sign_in_german, "Anmelden", 200),
    (sign_in_ended, "Sign in", 200),
    (sign_in_unavailable, "Sign in", 503),
    (sign_in_unproven_german, "Anmelden", 403),
    (state_unknown, "We could not match this to a request", 400),
    (connections_to_begin_with, "Your connected accounts", 200),
    (connections_with_more_to_connect, "Your connected accounts", 200),
    (signed_out, "You are signed out", 200),
    (ops_sign_in, "Sign in", 200),
    (ops_not_permitted, "Sign in", 403),
    (ops_operators, "Operators", 200),
    (ops_operator_signed_out, "Operators", 200),
    (ops_signed_out_everywhere, "Sign in", 200),
    (branded_connect, "Connect Stripe to Acme Analytics", 200),
    (branded_done, "Stripe is connected", 200),
    (branded_list, "Your connected accounts", 200),
    (branded_error, "Page not found", 404),
    (branded_console, "Connections", 200),
)


@pytest.mark.parametrize(("reach", "heading", "status"), STATES, ids=lambda one: getattr(one, "__name__", None))
def test_a_page(
    reach: Callable[[Visitor], None],
    heading: str,
    status: int,
    visitor: Visitor,
    watch: Watch,
) -> None:
    page = visitor.page

    reach(visitor)

    name = f"openid-{reach.__name__.replace('_', '-')}"
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(heading))
    assert watch.status == status
    assert page.title().endswith(" – Acme Analytics")
    assert page.title().startswith(("Error: ", "Fehler: ")) == (status >= 400)
    wrong = look.problems(page, name)
    wrong += look.walk(page)[1]
    wrong += look.markup(watch.markup(), name)
    assert wrong == []
    assert watch.said() == []


@pytest.mark.parametrize("color", [DARKEST, LIGHTEST])
def test_every_colour_that_settings_accept_can_be_read(visitor: Visitor, color: str) -> None:
    sheet = BRAND_SHEET.format(color=color)
    visitor.page.route("**/brand.css", lambda route: route.fulfill(body=sheet, content_type="text/css"))
    for number, reach in enumerate((branded_connect, sign_in)):
        reach(visitor)
        ground = visitor.page.locator(".button-primary").evaluate("(e) => getComputedStyle(e).backgroundColor")
        assert ground == f"rgb({', '.join(str(part) for part in bytes.fromhex(color[1:]))})"
        assert look.problems(visitor.page, f"branded-{color[1:]}-{number}") == []
        assert look.walk(visitor.page)[1] == []


def test_signing_in_and_out_without_javascript(world: OpenIdWorld, host: Host, browser: Browser) -> None:
    plain = browser.new_context(java_script_enabled=False)
    visitor = Visitor(world, host, plain.new_page(), "jo")
    visitor.sign_in("jo", "/connections", "Sign in with Acme")
    expect(visitor.page.get_by_role("heading", name="Your connected accounts")).to_be_visible()
    visitor.press("Sign out")
    expect(visitor.page.get_by_role("link", name="Sign in again")).to_be_visible()
    plain.close()
