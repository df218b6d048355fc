"""Every state of every page, small and wide, light and dark, with the keyboard alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.browser import look
from tests.browser.conftest import Host
from tests.browser.states import OPERATOR, PASSWORD, STATES, Scene, State
from tests.browser.watch import Watch
from tests.e2e.world import World

BRANDING = """
[branding]
name = "Acme Analytics"
support_email = "help@acme.example"
privacy_url = "https://acme.example/privacy"
"""


@pytest.fixture(autouse=True)
def nothing_is_held_back(world: World) -> None:
    """Let calls through again, whatever an earlier state has broken."""
    world.close_circuits()


@pytest.fixture(scope="module")
def running_world(new_world: World) -> World:
    """Sandbox and web server, the worker inside, one operator, and the name and addresses of a host."""
    config = new_world.folder / "broker.toml"
    config.write_text(BRANDING)
    new_world.environment["BROKER_CONFIG"] = str(config)
    new_world.start_sandbox()
    new_world.start_web(workers=1)
    new_world.run("operator", "create", "--email", OPERATOR, "--role", "admin", given=f"{PASSWORD}\n")
    return new_world


@pytest.fixture(scope="module")
def host(running_world: World) -> Host:
    """The host's backend."""
    return Host(running_world)


@pytest.fixture
def world(running_world: World) -> World:
    """The running world; everything is allowed at the providers and nothing fails."""
    running_world.control("reset")
    running_world.control("consent", auto="allow")
    return running_world


@pytest.fixture
def strangers(browser: Browser) -> Iterator[Callable[[], BrowserContext]]:
    """More fresh browsers."""
    made: list[BrowserContext] = []

    def another() -> BrowserContext:
        made.append(browser.new_context())
        return made[-1]

    yield another
    for context in made:
        context.close()


@pytest.fixture
def scene(
    world: World,
    host: Host,
    context: BrowserContext,
    watch: Watch,
    end_user: str,
    strangers: Callable[[], BrowserContext],
) -> Scene:
    """Somebody nobody has seen before, in a fresh browser."""
    return Scene(world, host, context.new_page(), watch, end_user, strangers)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_a_page(scene: Scene, state: State) -> None:
    page = scene.page

    state.reach(scene)

    heading = page.get_by_role("heading", level=1)
    expect(heading).to_have_text(re.compile(state.heading))
    assert scene.watch.status == state.status
    assert page.title().endswith(" – Acme Analytics")
    assert page.title().startswith("Error: ") or not state.error

    wrong = look.problems(page, state.name)
    stops, hidden = look.walk(page)
    wrong += hidden
    wrong += look.markup(scene.watch.markup(), state.name)
    if state.primary is not None:
        assert state.primary in [stop["text"] for stop in stops if stop["primary"]]
    assert wrong == []
    assert scene.watch.said() == []
    assert scene.watch.origins <= {scene.world.url, scene.world.sandbox_url}


def test_what_is_wrong_is_found(context: BrowserContext) -> None:
    page = context.new_page()
    page.set_content(
        """
        <style>:focus { outline: 0 } .button { color: #999; background: #aaa; height: 30px } #wide { width: 2000px }
        input { border: 1px solid #ddd } .icon { stroke: #ddd }
        .ringed:focus { outline: 3px solid #333 } .cut { height: 1.2em; overflow: hidden }</style>
        <h1>One</h1><h1>Two</h1><p id="wide">Wide</p><a href="/" aria-describedby="nobody">Small</a>
        <form><button class="button">Press</button><input><b id="wide">Again</b></form>
        <p class="cut">Some words that do not fit <svg class="icon" width="9" height="9"><path d="M0 0h9"/></svg></p>
        <a class="ringed" href="/">Ringed</a><img src="data:,">
        <figure><svg class="chart" width="90" height="20"><rect class="mark" width="9" height="9" fill="#ddd"/>
        <text x="80" y="9">Seven words</text></svg></figure>
        """
    )

    found = " / ".join(look.problems(page, "a-bad-page"))
    stops, hidden = look.walk(page)

    for expected in (
        "scrolls sideways", "sticks out: p", "2 h1", "no title", "no language", "id twice: wide",
        "leads nowhere: nobody", "px: a “Small”", "× 30.0 px: button.button",
        ":1: button.button", "edge of 1.36:1: input", "icon of 1.36:1: in p.cut", "cut off: p", "axe image-alt: img",
        "axe color-contrast: button", "axe target-size", "mark of 1.36:1: mark", "outside its chart: text",
    ):  # fmt: skip
        assert expected in found
    assert len(stops) == len(hidden) == 4
    assert any(re.fullmatch("focus ring of 1[.]..:1: a “Ringed”", each) for each in hidden)


def test_wrong_markup_is_found() -> None:
    text = """<!doctype html><html lang="en"><title>A page</title>
        <p style="color: red" onclick="go()"><ul><li></li></ul></p><img src="a.png"><time>today</time>
        <a href="/" href="/">Twice</a></div>"""

    found = " / ".join(look.markup(text, "a-bad-page"))

    for expected in (
        "style on <p>", "onclick on <p>", "an empty <li>", "an image without alt", "a time without its moment",
        "markup line 2: Unexpected end tag (p)", "markup line 3: Dropped duplicate attribute",
        "End tag (div) seen too early",
    ):  # fmt: skip
        assert expected in found


def test_every_way_without_javascript(browser: Browser, world: World, host: Host, end_user: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    Watch(context)
    page = context.new_page()
    world.control("faults", on="sequin.import", fault="status", status=503, times=1)

    page.goto(host.link(end_user, apps=["stripe"], return_url="https://host.example/"))
    page.get_by_role("button", name="Connect Stripe").click()
    # The page looks again by itself: for the import first, then for the first check.
    expect(page.get_by_role("heading", name="Stripe is connected")).to_be_visible()
    expect(page.locator(".badge-ok")).to_have_text("Connected")
    assert page.locator("noscript meta").count() == 0

    page.get_by_role("link", name="See your accounts").click()
    page.get_by_role("link", name="Details").click()
    page.get_by_role("button", name="Check now").click()
    expect(page.get_by_text("This account was just checked.")).to_be_visible()
    page.get_by_role("link", name="Deutsch").click()
    expect(page.get_by_role("heading", name="Verlauf")).to_be_visible()
    page.get_by_role("link", name="English").click()
    page.get_by_role("link", name="Disconnect").click()
    page.get_by_role("button", name="Disconnect").click()
    expect(page.get_by_role("status")).to_contain_text("disconnected")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="You are signed out")).to_be_visible()
    context.close()


def test_a_page_without_javascript_stops_looking(browser: Browser, world: World, host: Host, end_user: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    Watch(context)
    page = context.new_page()
    world.control("faults", on="sequin.import", fault="status", status=503)
    page.goto(host.link(end_user, apps=["stripe"]))
    page.get_by_role("button", name="Connect Stripe").click()
    expect(page.get_by_text("We are finishing set-up.")).to_be_visible()

    assert 'http-equiv="refresh"' in page.content()
    page.goto(page.url.partition("?")[0] + "?n=24")
    assert 'http-equiv="refresh"' not in page.content()
    expect(page.get_by_role("link", name="Check again")).to_be_visible()
    context.close()


def test_every_way_by_keyboard_alone(scene: Scene) -> None:
    page = scene.page

    def press(name: str, role: Literal["button", "link"] = "button") -> None:
        target = page.get_by_role(role, name=name)
        expect(target).to_be_visible()
        for _ in range(look.MOST_STOPS):
            page.keyboard.press("Tab")
            if target.evaluate("(e) => e === document.activeElement"):
                break
        page.keyboard.press("Enter")

    scene.go(scene.host.link(scene.end_user, apps=["stripe"], return_url="https://host.example/"))
    press("Connect Stripe")
    expect(page.locator(".badge-ok")).to_have_text("Connected")
    press("See your accounts", "link")
    press("Details of New Account", "link")
    press("Check now")
    expect(page.get_by_text("This account was just checked.")).to_be_visible()
    press("Disconnect", "link")
    press("Disconnect New Account")
    expect(page.get_by_role("status")).to_contain_text("disconnected")
    press("Sign out")
    expect(page.get_by_role("heading", name="You are signed out")).to_be_visible()
