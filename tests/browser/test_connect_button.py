"""The Connect button under the real headers, with a provider that sends people through a third origin."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Route, expect

from tests.browser.conftest import Host
from tests.browser.proxy import Proxy, ThirdHost, make_certificate
from tests.browser.watch import Watch
from tests.e2e.world import World

POLICY = "content-security-policy"

Scheme = Literal["http", "https"]


@dataclass(frozen=True)
class Stage:
    """A broker and a provider at addresses of one scheme, and the host the provider sends people through."""

    scheme: Scheme
    world: World
    host: Host
    url: str
    provider: Proxy
    third: ThirdHost

    def token_requests(self) -> int:
        """Return how often a code was sent to Stripe."""
        return len(self.world.requests_to("POST", "/stripe/oauth/token"))


@pytest.fixture(scope="module", params=["http", "https"])
def running_stage(request: pytest.FixtureRequest, new_world: World) -> Iterator[Stage]:
    """Everything over plain loopback, or everything that a browser sees over TLS."""
    world, scheme = new_world, request.param
    certificate = make_certificate(world.folder) if scheme == "https" else None
    third = ThirdHost(host="127.0.0.1", certificate=certificate)
    provider = Proxy(world.sandbox_port, certificate=certificate, through=third)
    front = Proxy(world.port, certificate=certificate) if certificate else None
    url = front.origin if front else world.url
    before = dict(world.environment)
    world.environment |= {
        "BROKER_PUBLIC_URL": url,
        "BROKER_TRUSTED_PROXIES": "0",
        "STRIPE_CONNECT_URL": f"{provider.origin}/stripe",
        "STRIPE_API_URL": f"{provider.origin}/stripe",
    }
    if certificate:
        world.environment["SSL_CERT_FILE"] = str(certificate)
    try:
        world.start_sandbox()
        world.start_web(workers=1)
        yield Stage(scheme, world, Host(world), url, provider, third)
    finally:
        world.stop_all()
        world.environment = before
        for server in (third, provider, front):
            if server:
                server.stop()


@pytest.fixture
def stage(running_stage: Stage) -> Stage:
    """The stage as if nobody had used it."""
    running_stage.world.control("reset")
    running_stage.provider.seen.clear()
    running_stage.third.seen.clear()
    return running_stage


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A fresh browser that takes our certificate."""
    context = browser.new_context(ignore_https_errors=True)
    yield context
    context.close()


def leave(page: Page, link: str) -> None:
    """Open a connect link and click its Connect button."""
    page.goto(link)
    page.get_by_role("button", name="Connect Stripe", exact=True).click()


def allow(page: Page) -> None:
    """Say yes at the provider, for an account nobody else has, and arrive."""
    page.get_by_role("radio", name="Use a new account").check()
    page.get_by_role("button", name="Connect", exact=True).click()
    expect(page.get_by_role("heading", name="Stripe is connected")).to_be_visible()


def with_form_action(page: Page, link: str, sources: str) -> None:
    """Serve one page with its own policy, but for where its form may lead."""

    def serve(route: Route) -> None:
        answer = route.fetch()
        policy, found = re.subn(r"form-action [^;]*", f"form-action {sources}", answer.headers[POLICY])
        assert found == 1
        route.fulfill(response=answer, headers=answer.headers | {POLICY: policy})

    page.route(link, serve)


def test_it_leads_through_the_third_origin_and_back(
    stage: Stage, context: BrowserContext, watch: Watch, end_user: str
) -> None:
    page = context.new_page()
    leave(page, stage.host.link(end_user, apps=["stripe"]))
    expect(page.get_by_role("heading", name="Connect your Stripe account")).to_be_visible()
    assert page.url.startswith(f"{stage.provider.origin}/stripe/oauth/authorize")
    assert len(stage.third.seen) == 1

    allow(page)

    expect(page.locator(".outcome")).to_contain_text("Everything is set up.")
    assert page.url.startswith(f"{stage.url}/flows/")
    assert len(stage.host.connections(end_user)) == 1
    assert stage.token_requests() == 1
    assert watch.said() == []
    assert watch.origins == {stage.url, stage.provider.origin, stage.third.origin}


def test_the_cookies_are_as_safe_as_the_scheme_allows(stage: Stage, context: BrowserContext, end_user: str) -> None:
    page = context.new_page()
    leave(page, stage.host.link(end_user, apps=["stripe"]))
    allow(page)

    cookies = {cookie["name"]: cookie for cookie in context.cookies(stage.url)}
    prefix = "__Host-" if stage.scheme == "https" else ""
    assert set(cookies) == {f"{prefix}broker_{purpose}" for purpose in ("browser", "session", "csrf")}
    for cookie in cookies.values():
        assert cookie["secure"] is (stage.scheme == "https")
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Lax"
        assert (cookie["path"], cookie["domain"]) == ("/", "localhost")


@pytest.mark.parametrize("running_stage", ["https"], indirect=True, scope="module")
def test_it_works_under_the_policy_of_production(stage: Stage, context: BrowserContext, end_user: str) -> None:
    link = stage.host.link(end_user, apps=["stripe"])
    page = context.new_page()
    with_form_action(page, link, "'self' https:")

    leave(page, link)

    expect(page.get_by_role("heading", name="Connect your Stripe account")).to_be_visible()


@pytest.mark.parametrize("listed", ["nobody", "the provider"])
def test_a_stricter_policy_would_break_it(
    stage: Stage, context: BrowserContext, watch: Watch, end_user: str, listed: str
) -> None:
    link = stage.host.link(end_user, apps=["stripe"])
    page = context.new_page()
    with_form_action(page, link, "'self'" if listed == "nobody" else f"'self' {stage.provider.origin}")

    with page.expect_console_message(lambda message: "form-action" in message.text):
        leave(page, link)

    expect(page.get_by_role("heading", name="Connect Stripe to", exact=False)).to_be_visible()
    assert page.url == link
    assert watch.said()
    assert len(stage.provider.seen) == (0 if listed == "nobody" else 1)
    assert stage.third.seen == []


def test_another_browser_is_told_so_and_the_first_still_finishes(
    stage: Stage, context: BrowserContext, browser: Browser, end_user: str
) -> None:
    link = stage.host.link(end_user, apps=["stripe"])
    page = context.new_page()
    leave(page, link)
    expect(page.get_by_role("heading", name="Connect your Stripe account")).to_be_visible()

    other = browser.new_context(ignore_https_errors=True)
    try:
        stranger = other.new_page()
        answer = stranger.goto(link)
        assert answer is not None
        assert answer.status == 403
        expect(stranger.get_by_role("heading", name="Open this link in the browser you started from")).to_be_visible()
        expect(stranger.get_by_role("button")).to_have_count(0)
        assert not [cookie for cookie in other.cookies() if "session" in str(cookie["name"])]
    finally:
        other.close()

    allow(page)
    assert len(stage.host.connections(end_user)) == 1


def test_reload_and_back_do_no_harm(stage: Stage, context: BrowserContext, watch: Watch, end_user: str) -> None:
    callbacks: list[str] = []

    def note(request: Request) -> None:
        if "/oauth/stripe/callback" in request.url:
            callbacks.append(request.url)

    context.on("request", note)
    page = context.new_page()
    leave(page, stage.host.link(end_user, apps=["stripe"]))
    allow(page)
    final = page.url
    assert "code" not in final
    assert "state" not in final

    page.reload()
    expect(page.get_by_role("heading", name="Stripe is connected")).to_be_visible()

    page.goto(callbacks[0])
    expect(page.get_by_role("heading", name="Stripe is connected")).to_be_visible()
    assert page.url == final

    # Back to the consent page, where the person allows a second time.
    while not page.url.startswith(stage.provider.origin):
        page.go_back()
    allow(page)
    assert page.url == final
    assert len(callbacks) == 3

    # Further back, to the page with the Connect button.
    while "/connect/" not in page.url:
        page.go_back()
    expect(page.get_by_text("was connected with this link")).to_be_visible()

    assert stage.token_requests() == 1
    assert len(stage.host.connections(end_user)) == 1
    assert watch.said() == []
