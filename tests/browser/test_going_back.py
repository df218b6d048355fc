"""Going back to the host by itself: where to, with what, and who stays because there is something to read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Host
from tests.browser.proxy import HostPages, Proxy
from tests.browser.watch import Watch
from tests.e2e.world import World


@pytest.fixture(scope="module")
def product() -> Iterator[HostPages]:
    """The host's own pages."""
    pages = HostPages()
    try:
        yield pages
    finally:
        pages.stop()


@pytest.fixture(scope="module")
def front(new_world: World) -> Iterator[Proxy]:
    """Stripe, whose pages let a form lead to itself and to our callback and no further, as real ones do."""
    proxy = Proxy(new_world.sandbox_port)
    proxy.policy = f"form-action 'self' {new_world.url}"
    try:
        yield proxy
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def running_world(new_world: World, product: HostPages, front: Proxy) -> World:
    """A broker that may send people back to the host's pages."""
    stripe = f"{front.origin}/stripe"
    new_world.environment |= {
        "BROKER_RETURN_ORIGINS": product.origin, "STRIPE_CONNECT_URL": stripe, "STRIPE_API_URL": stripe,
    }  # fmt: skip
    new_world.start_sandbox()
    new_world.start_web(workers=1)
    product.script = f"{new_world.url}/static/connect.js"
    return new_world


@pytest.fixture(scope="module")
def host(running_world: World) -> Host:
    """The host's backend."""
    return Host(running_world)


@pytest.fixture
def world(running_world: World, front: Proxy) -> World:
    """The running world, with everything allowed at the providers."""
    front.alters.clear()
    running_world.control("reset")
    running_world.control("consent", auto="allow")
    running_world.close_circuits()
    return running_world


@pytest.fixture
def link(world: World, host: Host, product: HostPages, end_user: str) -> str:
    """A link that takes people back by itself."""
    back = f"{product.origin}/back?tab=accounts"
    return host.link(end_user, apps=["stripe"], return_url=back, auto_return=True)


@pytest.fixture(params=[True, False], ids=["with JavaScript", "without JavaScript"])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """A tab of a fresh browser."""
    context = browser.new_context(java_script_enabled=request.param)
    Watch(context)
    yield context.new_page()
    context.close()


def leave(page: Page, link: str) -> None:
    """Follow a link and press its button."""
    page.goto(link)
    page.get_by_role("button", name="Connect Stripe", exact=True).click()


def test_who_connected_is_back_at_the_host(
    page: Page, link: str, world: World, host: Host, product: HostPages, end_user: str
) -> None:
    world.control("consent", auto=None)
    # The first try to import fails, so that the page is seen waiting and goes back later.
    world.control("faults", on="sequin.import", fault="status", status=503, times=1)
    leave(page, link)
    page.get_by_role("radio", name="Use a new account").check()
    page.get_by_role("button", name="Connect", exact=True).click()

    page.wait_for_url(re.compile(re.escape(f"{product.origin}/back?")))

    expect(page.get_by_text("You are back.")).to_be_visible()
    (connection,) = host.connections(end_user)
    told = parse_qs(urlsplit(page.url).query)
    assert told == {"tab": ["accounts"], "status": told["status"], "ref": [connection["ref"]]}
    assert told["status"][0] in ("unknown", "ok")
    # No step back leads to a page that has nothing more to say.
    page.go_back()
    expect(page).not_to_have_url(re.compile("/flows/"))


def test_who_said_no_stays_and_reads_why(page: Page, link: str, world: World, product: HostPages) -> None:
    world.control("consent", auto="deny")
    leave(page, link)

    expect(page.get_by_role("heading", name="Stripe was not connected")).to_be_visible()
    assert_stays(page, product)
    expect(page.get_by_role("link", name="Back to")).to_have_attribute(
        "href", re.compile(re.escape(f"{product.origin}/back?tab=accounts&status=denied&ref="))
    )


def test_who_has_an_import_that_failed_stays_and_reads_why(
    page: Page, link: str, world: World, product: HostPages
) -> None:
    world.control("faults", on="sequin.import", fault="status", status=422)
    leave(page, link)

    expect(page.get_by_role("heading", name="We could not finish connecting Stripe")).to_be_visible()
    assert_stays(page, product)


def test_who_gave_less_than_was_asked_for_stays_and_reads_what(
    page: Page, link: str, front: Proxy, product: HostPages
) -> None:
    front.alters["/stripe/oauth/token"] = (b'"read_write"', b'"read_only"')
    leave(page, link)

    expect(page.get_by_text("Everything is set up.")).to_be_visible()
    expect(page.get_by_text("Some permissions are missing.")).to_be_visible()
    assert_stays(page, product)


def assert_stays(page: Page, product: HostPages) -> None:
    """Nothing leads away from this page by itself; that it looks again at itself is fine."""
    assert "/flows/" in page.url
    assert not re.search(rf'http-equiv="refresh"[^>]*{re.escape(product.origin)}', page.content())
