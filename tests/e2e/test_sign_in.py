"""People and operators sign in at an OpenID provider that we did not write, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from tests.e2e.openid_provider import CLIENT_ID, CLIENT_SECRET
from tests.e2e.openid_world import OpenIdWorld, log_in, sign_in
from tests.e2e.world import Person, eventually


@pytest.fixture(scope="module")
def world(sqlite_databases: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIdWorld]:
    with sqlite_databases.migrated() as url:
        world = OpenIdWorld(tmp_path_factory.mktemp("openid"), url)
        try:
            world.start_provider()
            world.start_sandbox()
            world.start_web(processes=2, workers=1)
            world.control("consent", auto="allow")
            yield world
        finally:
            world.stop_all()


def test_a_person_signs_in_and_connects_an_account_without_a_host(world: OpenIdWorld) -> None:
    jo = Person(world)
    mine = sign_in(jo, "jo", jo.get("/connections").headers["Location"])
    assert mine.url == f"{world.url}/connections"
    assert "No accounts connected yet" in mine.text
    done = jo.follow(jo.press(mine, "/connections/connect/stripe"))
    assert "Stripe is connected" in done.text
    subject = str(json.loads(world.run("connections", "list", "--json"))["data"][0]["end_user"]["id"])
    assert world.imported(subject)["end_user"]["email"] == "jo@example.com"
    mine = jo.get("/connections")
    assert "Stripe" in mine.text
    assert "No accounts connected yet" not in mine.text
    assert "You are signed out" in jo.follow(jo.press(mine, "/sign-out")).text
    assert jo.get("/connections").status_code == 303
    # The provider still knows them; we see the same person again.
    assert "Stripe" in sign_in(jo, "jo").text


def test_a_callback_counts_once_and_in_one_browser(world: OpenIdWorld) -> None:
    jo, stranger = Person(world), Person(world)
    back = log_in(jo, jo.press(jo.get("/sign-in"), "/sign-in"), "jo").headers["Location"]
    assert stranger.get(back).status_code == 403
    assert jo.get(f"{world.url}/ops/sign-in/callback?{urlsplit(back).query}").status_code == 400
    assert jo.get(back).status_code == 303
    assert jo.get(back).status_code == 400


def test_the_provider_takes_no_code_without_our_verifier(world: OpenIdWorld) -> None:
    jo = Person(world)
    back = log_in(jo, jo.press(jo.get("/sign-in"), "/sign-in"), "jo").headers["Location"]
    form = {
        "grant_type": "authorization_code",
        "code": parse_qs(urlsplit(back).query)["code"][0],
        "redirect_uri": f"{world.url}/sign-in/callback",
    }
    address, client = f"{world.provider_url}/o/token/", (CLIENT_ID, CLIENT_SECRET)
    assert requests.post(address, auth=client, data=form, timeout=60).status_code == 400


def test_operators_have_the_role_that_a_claim_gives_them(world: OpenIdWorld) -> None:
    sam, vi, jo = Person(world), Person(world), Person(world)
    page = sign_in(sam, "sam", "/ops/sign-in?next=/ops/operators", "/ops/sign-in/openid")
    assert page.url == f"{world.url}/ops/operators"
    assert "sam@example.com (admin)" in page.text
    assert "vi@example.com (viewer)" in sign_in(vi, "vi", "/ops/sign-in", "/ops/sign-in/openid").text
    assert vi.get("/ops/operators").status_code == 403
    refused = sign_in(jo, "jo", "/ops/sign-in", "/ops/sign-in/openid")
    assert refused.status_code == 403
    assert "jo@example.com" in refused.text
    assert "your account has no role here" in refused.text
    assert "1 browser" in world.run("operator", "sign-out", "--email", "vi@example.com")
    assert vi.get("/ops/connections").status_code == 303
    listed = json.loads(world.run("operator", "list", "--json"))["data"]
    assert {one["email"]: (one["role"], one["sessions"]) for one in listed} == {
        "sam@example.com": ("admin", 1), "vi@example.com": ("viewer", 0)
    }  # fmt: skip


def test_a_password_still_opens_the_console(world: OpenIdWorld) -> None:
    password = "correct horse battery staple"
    world.run("operator", "create", "--email", "kim@example.com", "--role", "viewer", given=f"{password}\n")
    kim = Person(world)
    page = kim.follow(kim.press(kim.get("/ops/sign-in"), "/ops/sign-in", email="kim@example.com", password=password))
    assert "kim@example.com (viewer)" in page.text


def test_the_doctor_asks_the_provider(world: OpenIdWorld) -> None:
    found = json.loads(world.run("doctor", "--json"))
    about = [check for check in found["checks"] if check["name"] == "sign_in"]
    assert {(check["app"], check["state"]) for check in about} >= {("sign_in", "pass"), ("operators.sign_in", "pass")}
    assert f"{world.url}/ops/sign-in/callback" in {one["address"] for one in found["register"]}


def test_a_new_signing_key_is_found_and_a_provider_that_is_away_is_told(world: OpenIdWorld) -> None:
    # Each process knows what it was told itself: with one there is no question who was.
    world.stop("web")
    world.start_web()
    assert "Your connected accounts" in sign_in(Person(world), "jo").text
    world.stop("provider")
    away = Person(world)
    page = away.follow(away.press(away.get("/sign-in"), "/sign-in"), until=world.provider_url)
    # What it published is known: the person is led there, and finds nobody.
    assert page.headers["Location"].startswith(world.provider_url)
    world.start_provider(key=2)
    # At most a few seconds pass between two looks for keys.
    eventually(lambda: "Your connected accounts" in sign_in(Person(world), "jo").text)


def test_no_secret_of_a_sign_in_is_in_a_log(world: OpenIdWorld) -> None:
    jo = Person(world)
    back = log_in(jo, jo.press(jo.get("/sign-in"), "/sign-in"), "jo").headers["Location"]
    jo.get(back)
    query = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
    logs = "".join(path.read_text() for path in world.folder.glob("web*.log"))
    assert "sign_in.left" in logs
    for secret in (CLIENT_SECRET, query["code"], query["state"], "eyJ"):
        assert secret not in logs
