from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

import pytest
from werkzeug.test import TestResponse

from broker.sandbox.stand_ins import discover
from tests.sandbox.visitor import CHALLENGE, STRIPE_CALLBACK, Visitor


class Outline(HTMLParser):
    """What a reader with or without eyes needs of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unlabelled = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "label":
            self.open.append(tag)
        if tag == "input" and dict(attrs).get("type") != "hidden" and not self.open:
            self.unlabelled += 1

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self.open.pop()

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def asked_of_linear(visitor: Visitor) -> dict[str, str]:
    client = discover()["linear"].client(visitor.secrets)
    return {"response_type": "code", "client_id": client.id, "redirect_uri": STRIPE_CALLBACK, "scope": "read",
            "code_challenge": CHALLENGE}  # fmt: skip


SIGNED_OUT: dict[str, Callable[[Visitor], TestResponse]] = {
    "stripe": Visitor.stripe_authorize,
    "stripe_app": Visitor.stripe_install,
    "github": Visitor.github_authorize,
    "sign_in": lambda visitor: visitor.client.get(f"/github/apps/{visitor.secrets.github_app_slug}/installations/new"),
    "404": lambda visitor: visitor.github_authorize(client_id="x"),
    "home": lambda visitor: visitor.client.get("/"),
    "consent": lambda visitor: visitor.client.get("/linear/oauth/authorize", query_string=asked_of_linear(visitor)),
}
"""Pages for somebody who has not signed in anywhere."""


@pytest.fixture(params=[*SIGNED_OUT, "install", "configured", "unseen"])
def page(request: pytest.FixtureRequest, visitor: Visitor) -> str:
    if request.param in SIGNED_OUT:
        return SIGNED_OUT[request.param](visitor).text
    install = f"/github/apps/{visitor.secrets.github_app_slug}/installations/new"
    login = "solo-sam" if request.param == "configured" else "member-max"
    visitor.client.post("/github/login", data={"login": login})
    if request.param == "install":
        return visitor.client.get(install).text
    action = "configure" if request.param == "configured" else "install"
    return visitor.client.post(install, data={"account": login, "action": action}).text


def test_every_page_says_what_it_is_and_reads_without_scripts(page: str) -> None:
    outline = Outline(page)
    assert "Sandbox" in page
    assert "Nothing real is shared" in page
    assert outline.count("h1") == 1
    assert ("html", {"lang": "en"}) in outline.tags
    assert any(attrs.get("name") == "viewport" for tag, attrs in outline.tags if tag == "meta")
    assert outline.count("script") == 0
    assert outline.unlabelled == 0
    assert outline.count("fieldset") == outline.count("legend")


def test_every_page_loads_from_here_alone(page: str) -> None:
    addresses = [attrs["href"] for tag, attrs in Outline(page).tags if tag == "link"]
    assert addresses == ["/static-sandbox/style.css"]
    assert "<img" not in page
    assert "style=" not in page


def test_pages_forbid_scripts_and_framing_but_let_a_form_lead_to_the_broker(visitor: Visitor) -> None:
    policy = visitor.stripe_authorize().headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action" not in policy


def test_the_stylesheet_is_served(visitor: Visitor) -> None:
    answer = visitor.client.get("/static-sandbox/style.css")
    assert answer.mimetype == "text/css"
    assert "prefers-color-scheme: dark" in answer.text


def test_what_people_type_is_escaped(visitor: Visitor) -> None:
    visitor.control("consent", auto="allow", account="acct_<b>")
    visitor.stripe_authorize()
    visitor.control("consent", auto=None)
    assert "<b>" not in visitor.stripe_authorize().text


def test_signing_out_asks_again(visitor: Visitor) -> None:
    visitor.github_code("solo-sam")
    visitor.client.post("/github/logout")
    assert visitor.github_authorize().status_code == 200
