"""The script for hosts: a popup that says how it ended, to the page that opened it and to nobody else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Host
from tests.browser.proxy import HostPages
from tests.browser.watch import Watch
from tests.e2e.world import World

EVENTS = ("success", "pending", "denied", "error", "unknown")


@pytest.fixture(scope="module")
def pages() -> Iterator[HostPages]:
    """The host's own pages."""
    pages = HostPages()
    try:
        yield pages
    finally:
        pages.stop()


@pytest.fixture(scope="module")
def world(new_world: World, pages: HostPages) -> World:
    """A broker that sends people back to the host's pages."""
    new_world.environment["BROKER_RETURN_ORIGINS"] = pages.origin
    new_world.start_sandbox()
    new_world.start_web(workers=1)
    new_world.control("consent", auto="allow")
    pages.script = f"{new_world.url}/static/connect.js"
    return new_world


@pytest.fixture(scope="module")
def host(world: World) -> Host:
    """The host's backend."""
    return Host(world)


@pytest.fixture
def page(context: BrowserContext, watch: Watch, world: World) -> Page:
    """A tab of the host's product."""
    return context.new_page()


@pytest.fixture
def offer(page: Page, host: Host, pages: HostPages, end_user: str) -> Callable[[], None]:
    """Show the host's page with a fresh connect link."""

    def show() -> None:
        pages.link = host.link(end_user, apps=["stripe"], return_url=f"{pages.origin}/back")
        show_page(page, pages)

    return show


def show_page(page: Page, pages: HostPages) -> None:
    page.goto(pages.origin)
    names = ", ".join(f"'broker:{event}'" for event in EVENTS)
    # In the capturing phase of the document, as a host that handles them in one place would.
    page.evaluate(
        f"""() => {{
          window.heard = [];
          for (const name of [{names}]) {{
            document.addEventListener(name, (event) => window.heard.push([name, event.detail]));
          }}
        }}"""
    )


def heard(page: Page) -> list[list[object]]:
    page.wait_for_function("() => window.heard.length")
    return list(page.evaluate("() => window.heard"))


def test_a_popup_connects_and_closes_itself_and_the_page_hears_success(
    page: Page, offer: Callable[[], None], watch: Watch
) -> None:
    offer()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Connect Stripe").click()
    popup = opened.value
    popup.get_by_role("button", name="Connect Stripe").click()
    expect(popup.get_by_text("Everything is set up.")).to_be_visible()

    with popup.expect_event("close"):
        popup.get_by_role("link", name="Back to").click()

    ((event, detail),) = heard(page)
    assert event == "broker:success"
    assert isinstance(detail, dict)
    assert set(detail) == {"status", "ref"}
    assert detail["status"] in {"ok", "unknown"}
    assert watch.said() == []


def test_the_page_hears_that_the_person_said_no(page: Page, offer: Callable[[], None], world: World) -> None:
    world.control("consent", auto="deny")
    try:
        offer()
        with page.expect_popup() as opened:
            page.get_by_role("link", name="Connect Stripe").click()
        opened.value.get_by_role("button", name="Connect Stripe").click()
        with opened.value.expect_event("close"):
            opened.value.get_by_role("link", name="Back to").click()
    finally:
        world.control("consent", auto="allow")

    assert heard(page)[0][0] == "broker:denied"


def test_a_window_that_only_seems_closed_is_no_failure_and_its_result_still_arrives(
    page: Page, pages: HostPages
) -> None:
    # A page of a provider that cuts the tie to its opener.
    pages.link = f"{pages.origin}/cut"
    show_page(page, pages)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Connect Stripe").click()
    popup = opened.value
    expect(popup.get_by_text("The tie is cut.")).to_be_visible()
    assert popup.evaluate("() => [window.opener, window.name]") == [None, ""]

    page.evaluate("() => dispatchEvent(new Event('focus'))")
    assert heard(page) == [["broker:unknown", {}]]

    with popup.expect_event("close"):
        popup.goto(f"{pages.origin}/back?status=ok&ref=7F3K-92QD-M4TX")
    page.wait_for_function("() => window.heard.length === 2")
    assert heard(page)[1] == ["broker:success", {"status": "ok", "ref": "7F3K-92QD-M4TX"}]


def test_where_popups_are_blocked_the_link_opens_in_the_same_tab(page: Page, offer: Callable[[], None]) -> None:
    offer()
    page.evaluate("() => { window.open = () => null }")
    page.get_by_role("link", name="Connect Stripe").click()

    expect(page.get_by_role("heading", name="Connect Stripe to")).to_be_visible()


def test_without_a_popup_the_page_people_come_back_to_stays(page: Page, pages: HostPages) -> None:
    page.goto(f"{pages.origin}/back?status=ok&ref=7F3K-92QD-M4TX")

    expect(page.get_by_text("You are back.")).to_be_visible()
    assert urlsplit(page.url).path == "/back"


def test_another_tab_does_not_take_the_result_for_its_own(
    context: BrowserContext, page: Page, offer: Callable[[], None], pages: HostPages
) -> None:
    offer()
    other = context.new_page()
    show_page(other, pages)
    with other.expect_popup():
        other.get_by_role("link", name="Connect Stripe").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="Connect Stripe").click()
    opened.value.get_by_role("button", name="Connect Stripe").click()
    expect(opened.value.get_by_role("heading", name="Stripe is connected")).to_be_visible()
    with opened.value.expect_event("close"):
        opened.value.get_by_role("link", name="Back to").click()

    assert heard(page)
    assert other.evaluate("() => window.heard") == []
