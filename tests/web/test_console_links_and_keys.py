"""Connect links and API keys in the console: made, shown once, listed, taken back."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from broker.apikeys import ApiKeys
from broker.contract import LinkState
from broker.links import LinkRequest
from broker.models import Link, Role
from broker.operators import Operators
from tests.house import House
from tests.web.test_console import csrf_of, signed_in, text_of


def test_a_link_is_made_and_its_address_shown_once(app: Flask, house: House, operators: Operators) -> None:
    client = signed_in(app, operators)
    form = {
        "csrf_token": csrf_of(client.get("/ops/links/new")), "end_user": "jo-1", "email": "jo@example.com",
        "app": "stripe", "expires_in": "900", "key": ["plan", ""], "value": ["pro", "left out"],
    }  # fmt: skip
    made = client.post("/ops/links/new", data=form)
    address = re.search(r"http://[^<\"]+/connect/([\w-]{43})<", text_of(made))
    assert made.status_code == 201
    assert address
    assert made.headers["Cache-Control"] == "no-store"
    assert client.get(f"/connect/{address[1]}").status_code == 200
    listed = text_of(client.get("/ops/links"))
    assert address[1] not in listed
    assert "Opened" in listed
    assert "operator@example.com" in listed
    assert house.value(sa.select(Link.host_metadata)) == {"plan": "pro"}
    assert [record[:3] for record in house.audited()][-1] == ("operator", "operator@example.com", "link.created")


def test_what_is_wrong_with_a_link_is_told_at_its_field(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators)
    form = {
        "csrf_token": csrf_of(client.get("/ops/links/new")), "end_user": "", "email": "<b>", "app": "nope",
        "return_url": "https://evil.example/", "key": "end_user_id", "value": "x", "expires_in": "abc",
    }  # fmt: skip
    page = client.post("/ops/links/new", data=form)
    assert page.status_code == 422
    for field in ("id", "email", "apps", "return_url", "metadata"):
        assert f'id="{field}-wrong"' in text_of(page)
        assert f'href="#{field}"' in text_of(page)
    assert 'value="&lt;b&gt;"' in page.get_data(as_text=True)


def test_a_link_is_taken_back(app: Flask, house: House, operators: Operators) -> None:
    made = house.links.create(LinkRequest("jo-1"), created_by="cli")
    client = signed_in(app, operators)
    assert f'href="/ops/links/{made.id}/revoke"' in text_of(client.get("/ops/links"))
    asked = client.get(f"/ops/links/{made.id}/revoke")
    assert "Revoke the link for jo-1?" in text_of(asked)
    assert not any(action == "link.revoked" for _, _, action, _ in house.audited())
    csrf = csrf_of(asked)
    page = client.post(f"/ops/links/{made.id}/revoke", data={"csrf_token": csrf}, follow_redirects=True)
    assert "Nobody can start through that link" in text_of(page)
    assert f"Revoke {made.id}" not in text_of(page)
    assert client.get(made.url.removeprefix("http://localhost:8000")).status_code == 410
    assert ("operator", "operator@example.com", "link.revoked", made.id) in house.audited()
    assert client.get(f"/ops/links/{made.id}/revoke").headers["Location"] == "/ops/links"
    assert client.get("/ops/links/lnk_x/revoke").status_code == 404


@pytest.mark.parametrize("state", LinkState)
def test_links_are_narrowed_to_a_state(app: Flask, house: House, operators: Operators, state: LinkState) -> None:
    now, jo, links = house.clock.now(), house.end_user("jo"), {}
    for each in LinkState:
        links[each] = made = house.links.create(LinkRequest(f"{each}-1"), created_by="cli")
        changes: dict[LinkState, dict[str, Any]] = {
            LinkState.OPENED: {"opened_at": now}, LinkState.STARTED: {"opened_at": now, "started_at": now},
            LinkState.EXPIRED: {"expires_at": now}, LinkState.REVOKED: {"revoked_at": now, "expires_at": now},
        }  # fmt: skip
        if each in changes:
            house.run(sa.update(Link).where(Link.public_id == made.id).values(**changes[each]))
        if each is LinkState.USED:
            key = house.value(sa.select(Link.id).where(Link.public_id == made.id))
            house.spend(key, house.connection(jo))
    client = signed_in(app, operators, Role.VIEWER)
    page = text_of(client.get(f"/ops/links?state={state}"))
    assert {each for each in LinkState if links[each].id in page} == {state}
    assert house.links.state(links[state].id).state is state


def test_a_state_without_links_says_so_and_pages_keep_it(app: Flask, house: House, operators: Operators) -> None:
    client = signed_in(app, operators, Role.VIEWER)
    assert "No links in this state" in text_of(client.get("/ops/links?state=used"))
    for number in range(51):
        house.links.create(LinkRequest(f"u{number}"), created_by="cli")
    first = text_of(client.get("/ops/links?state=unopened"))
    onward = re.search(r'href="([^"]+)" rel="next"', first)
    assert onward
    assert "state=unopened" in onward[1]
    second = text_of(client.get(onward[1]))
    assert second.count('data-label="Link"') == 1
    assert 'href="/ops/links?state=unopened">First page' in second


def test_links_are_paged_and_a_viewer_makes_none(app: Flask, house: House, operators: Operators) -> None:
    for number in range(51):
        house.links.create(LinkRequest(f"u{number}"), created_by="cli")
    client = signed_in(app, operators, Role.VIEWER)
    first = text_of(client.get("/ops/links"))
    onward = re.search(r'href="([^"]+)" rel="next"', first)
    assert onward
    assert first.count('data-label="Link"') == 50
    assert text_of(client.get(onward[1])).count('data-label="Link"') == 1
    assert "/revoke" not in first
    assert "/ops/links/new" not in first


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("a", "b", "c", "d"), "a, b, c, d"),
        (("a", "b", "c", "d", "e", "f"), "a, b, c<details><summary>and 3 more</summary>d, e, f</details>"),
    ],
)
def test_a_link_for_many_apps_stays_one_row(
    app: Flask, house: House, operators: Operators, names: tuple[str, ...], shown: str
) -> None:
    made = house.links.create(LinkRequest("jo-1"), created_by="cli")
    house.run(sa.update(Link).where(Link.public_id == made.id).values(apps=list(names)))
    page = text_of(signed_in(app, operators, Role.VIEWER).get("/ops/links"))
    assert f'<td data-label="For" class="roomy">{shown}</td>' in page


def test_a_key_is_made_shown_once_used_and_taken_back(app: Flask, house: House, operators: Operators) -> None:
    client = signed_in(app, operators, Role.ADMIN)
    csrf = csrf_of(client.get("/ops/keys"))
    form = {"csrf_token": csrf, "name": "backend <b>", "scope": ["links:write", "links:read"]}
    made = client.post("/ops/keys", data=form)
    key = re.search(r"brk_[\w-]{43}", text_of(made))
    assert made.status_code == 201
    assert key
    listed = client.get("/ops/keys")
    assert key[0] not in text_of(listed)
    assert "Never" in text_of(listed)
    assert "backend &lt;b&gt;" in listed.get_data(as_text=True)
    (known,) = ApiKeys(house.database, house.clock).list()
    assert known.scopes == ("links:write", "links:read")
    asked = text_of(client.get(f"/ops/keys/{known.id}/revoke"))
    assert "Revoke backend <b>?" in asked
    assert "It was never used." in asked
    gone = client.post(f"/ops/keys/{known.id}/revoke", data={"csrf_token": csrf}, follow_redirects=True)
    assert "Its next call is refused." in text_of(gone)
    actions = [record for record in house.audited() if record[2].startswith("api_key.")]
    assert actions == [
        ("operator", "admin@example.com", "api_key.created", known.id),
        ("operator", "admin@example.com", "api_key.revoked", known.id),
    ]
    for unknown in (known.id, "key_x"):
        assert client.get(f"/ops/keys/{unknown}/revoke").headers["Location"] == "/ops/keys"


def test_a_key_that_may_do_nothing_is_not_made(app: Flask, house: House, operators: Operators) -> None:
    client = signed_in(app, operators, Role.ADMIN)
    csrf = csrf_of(client.get("/ops/keys"))
    answer = client.post("/ops/keys", data={"csrf_token": csrf, "name": "backend"})
    assert answer.status_code == 422
    assert "Scopes must be some of" in text_of(answer)
    assert ApiKeys(house.database, house.clock).list() == ()
