"""`broker demo` by clicks: how many it takes, and what stands in Sequin afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser import look, screenshots
from tests.browser.demo import RunningDemo, connect_both, running_demo
from tests.browser.watch import Clicks, Watch
from tests.e2e.world import ROOT, eventually

FIRST_ACCOUNT_CLICKS = 3
SECOND_ACCOUNT_CLICKS = 4


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[RunningDemo]:
    """A demo that nobody has used."""
    with running_demo(tmp_path) as demo:
        yield demo


@pytest.fixture(scope="module")
def used_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """A demo that other tests may have used before."""
    with running_demo(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


def assert_in_sequin(demo: RunningDemo) -> None:
    """Both accounts stand in the sandbox's Sequin as they should."""
    credentials = eventually(lambda: found if len(found := demo.state()["credentials"]) >= 2 else None)
    by_kind = {credential["kind"]: credential for credential in credentials}
    assert len(credentials) == 2
    assert set(by_kind) == {"stripe_oauth2", "github_app"}
    settings, apps = demo.settings(), demo.sequin_apps()
    refs = set()
    for kind, client_id in (("stripe_oauth2", "STRIPE_CLIENT_ID"), ("github_app", "GITHUB_CLIENT_ID")):
        assert by_kind[kind]["oauth_app_id"] == apps[str(settings[client_id])]
        assert by_kind[kind]["metadata"]["end_user_id"] == "jo-lind"
        refs.add(by_kind[kind]["metadata"]["broker_connection_id"])
    assert len(refs) == 2

    stripe = by_kind["stripe_oauth2"]["properties"]
    (grant,) = (grant for grant in demo.state()["grants"] if grant["provider"] == "stripe")
    assert stripe["stripe_user_id"] == "acct_1NorthwindCoffee0"
    assert stripe["secret"] == grant["access_token"]
    assert stripe["test"] is not grant["livemode"]
    assert stripe["name"] == "Northwind Coffee"

    github = by_kind["github_app"]["properties"]
    (jo,) = (account for account in demo.state()["accounts"] if account.get("login") == "octo-jo")
    (installation,) = jo["installations"]
    assert github["installation_id"] == installation["id"]
    assert (github["account_login"], github["account_type"]) == ("octo-jo", "User")


def assert_on_the_persons_pages(demo: RunningDemo, page: Page) -> None:
    """Both accounts show as connected, to the person and on the demo's page."""
    page.get_by_role("link", name="See your accounts").click()
    expect(page.get_by_role("heading", name="Your connected accounts")).to_be_visible()
    for name in ("Northwind Coffee", "octo-jo"):
        card = page.locator("section").filter(has=page.get_by_role("heading", name=name))
        expect(card.locator(".badge-ok")).to_have_text("Connected")
    page.goto(f"{demo.url}/demo/")
    rows = page.get_by_role("region", name="Connected accounts").locator(".next")
    expect(rows).to_have_count(2)
    for name in ("Northwind Coffee", "octo-jo"):
        expect(rows.filter(has_text=name).locator(".badge-ok")).to_have_text("Connected")
        expect(rows.filter(has_text=name)).to_contain_text("Seen in Sequin")


def test_two_accounts_by_clicks(demo: RunningDemo, context: BrowserContext, watch: Watch) -> None:
    page = context.new_page()

    first, second = connect_both(demo, page)

    assert first <= FIRST_ACCOUNT_CLICKS
    assert second <= SECOND_ACCOUNT_CLICKS
    expect(page.locator(".outcome")).to_contain_text("Everything is set up.")
    assert_in_sequin(demo)
    assert_on_the_persons_pages(demo, page)
    assert watch.said() == []
    assert watch.origins == {demo.url, demo.sandbox_url}


def test_the_demos_page_before_and_after(used_demo: RunningDemo, context: BrowserContext, watch: Watch) -> None:
    page = context.new_page()
    page.goto(f"{used_demo.url}/demo/")
    wrong = look.problems(page, "demo")
    clicks = Clicks(page)
    clicks.button("Connect accounts")
    clicks.button("Connect Stripe")
    clicks.button("Connect")
    expect(page.locator(".outcome")).to_contain_text("Everything is set up.")
    clicks.link("Back to Acme Analytics")
    expect(page.get_by_text("You are back from the broker.")).to_be_visible()
    wrong += look.problems(page, "demo-back")
    wrong += look.walk(page)[1]
    assert wrong == []
    assert watch.said() == []


def test_the_demos_page_has_one_way_to_begin(used_demo: RunningDemo, context: BrowserContext, watch: Watch) -> None:
    page = context.new_page()
    page.goto(f"{used_demo.url}/demo/")
    buttons = page.get_by_role("button", name=re.compile("^Connect"))
    expect(buttons).to_have_count(1)
    expect(buttons).to_have_class(re.compile("button-primary"))
    expect(buttons).to_have_text("Connect accounts")
    buttons.click()
    expect(page.get_by_role("heading", name="Connect your accounts")).to_be_visible()
    # First the four the demo says something about, of those the shortest way first and the longest last.
    offered = buttons.all_text_contents()
    assert (offered[0], offered[3]) == ("Connect Stripe", "Connect GitHub")
    assert "Connect Stripe App" in offered
    assert watch.said() == []


def test_two_accounts_without_javascript(demo: RunningDemo, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        watch = Watch(context)
        page = context.new_page()

        first, second = connect_both(demo, page)

        assert first <= FIRST_ACCOUNT_CLICKS
        assert second <= SECOND_ACCOUNT_CLICKS
        # Nothing is clicked here: the page looks again by itself.
        expect(page.locator(".outcome")).to_contain_text("Everything is set up.")
        assert_in_sequin(demo)
        assert_on_the_persons_pages(demo, page)
        assert watch.said() == []
        assert watch.origins == {demo.url, demo.sandbox_url}
    finally:
        context.close()


def test_saying_no_and_thinking_again(used_demo: RunningDemo, context: BrowserContext, watch: Watch) -> None:
    before = used_demo.state()["credentials"]
    page = context.new_page()
    clicks = Clicks(page)
    page.goto(f"{used_demo.url}/demo/")
    clicks.button("Connect accounts")
    clicks.button("Connect Stripe")
    clicks.button("Deny")

    expect(page.get_by_role("heading", name="Stripe was not connected")).to_be_visible()
    expect(page.locator(".outcome")).to_contain_text("You chose not to allow access")
    expect(page.locator(".outcome")).to_contain_text("Nothing was shared.")
    assert used_demo.state()["credentials"] == before

    clicks.button("Try again")
    clicks.radio("Use a new account")
    clicks.button("Connect")
    expect(page.get_by_role("heading", name="Stripe is connected")).to_be_visible()
    expect(page.locator(".outcome")).to_contain_text("Everything is set up.")
    assert len(used_demo.state()["credentials"]) == len(before) + 1
    assert watch.said() == []
    assert watch.origins == {used_demo.url, used_demo.sandbox_url}


def test_the_pictures_of_the_documents_can_be_taken_anew(
    demo: RunningDemo, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pictures")

    screenshots.take(demo, browser, folder)

    taken = {picture.name for picture in folder.iterdir()}
    assert taken == {picture.name for picture in screenshots.PICTURES.iterdir()}
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert {name for one in documents for name in re.findall(r"pictures/([\w-]+\.png)", one.read_text())} == taken
