from __future__ import annotations

from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from werkzeug.test import TestResponse

from broker.clock import ManualClock
from broker.sandbox.secrets import generate_secrets
from tests.sandbox.visitor import Visitor, json_of, query_of

SETUP = "http://127.0.0.1:8000/oauth/github/setup"


def install(visitor: Visitor, *, post: dict[str, str] | None = None, enterprise: bool = False) -> TestResponse:
    path = f"/{'github-apps' if enterprise else 'apps'}/{visitor.secrets.github_app_slug}/installations/new"
    if post is None:
        return visitor.client.get(f"/github{path}?state=st")
    return visitor.client.post(f"/github{path}?state=st", data=post)


def logins(visitor: Visitor, token: str) -> list[str]:
    body = visitor.github_get("/user/installations", token).get_json()
    return [one["account"]["login"] for one in body["installations"]]


class TestInstallPage:
    @pytest.mark.parametrize("enterprise", [False, True])
    def test_one_click_installs_on_the_personal_account(self, visitor: Visitor, enterprise: bool) -> None:
        token = visitor.github_user("octo-jo")["access_token"]
        page = install(visitor, enterprise=enterprise).text
        assert 'value="octo-jo" checked' in page
        back = install(visitor, post={"account": "octo-jo", "action": "install"}, enterprise=enterprise)
        query = query_of(back)
        assert back.headers["Location"].startswith(f"{SETUP}?")
        assert (query["setup_action"], query["state"]) == ("install", "st")
        [one] = visitor.github_get("/user/installations", token).get_json()["installations"]
        assert str(one["id"]) == query["installation_id"]

    def test_an_owner_installs_on_an_organisation(self, visitor: Visitor) -> None:
        token = visitor.github_user("octo-jo")["access_token"]
        install(visitor, post={"account": "tidewater-coop", "action": "install"})
        [one] = visitor.github_get("/user/installations", token).get_json()["installations"]
        assert one["account"]["type"] == "Organization"

    def test_a_member_can_only_ask_an_owner(self, visitor: Visitor) -> None:
        token = visitor.github_user("member-max")["access_token"]
        assert install(visitor, post={"account": "tidewater-coop", "action": "install"}).status_code == 200
        back = install(visitor, post={"account": "tidewater-coop", "action": "request"})
        assert query_of(back) == {"setup_action": "request", "state": "st"}
        assert logins(visitor, token) == ["globex-pottery"]

    def test_an_installed_account_is_a_dead_end(self, visitor: Visitor) -> None:
        visitor.github_user("solo-sam")
        answer = install(visitor, post={"account": "solo-sam", "action": "configure"})
        assert (answer.status_code, "Location" in answer.headers) == (200, False)

    def test_unless_the_app_redirects_on_update(self, visitor: Visitor) -> None:
        visitor.control("options", github_redirect_on_update=True)
        visitor.github_user("solo-sam")
        answer = install(visitor, post={"account": "solo-sam", "action": "configure"})
        assert query_of(answer)["setup_action"] == "update"

    def test_who_is_not_signed_in_is_asked_and_comes_back(self, visitor: Visitor) -> None:
        page = install(visitor).text
        assert "Sign in" in page
        path = f"/github/apps/{visitor.secrets.github_app_slug}/installations/new?state=st"
        answer = visitor.client.post("/github/login", data={"login": "octo-jo", "return_to": path})
        assert answer.headers["Location"] == path
        assert "Signed in as" in install(visitor).text

    def test_signing_in_leads_nowhere_else(self, visitor: Visitor) -> None:
        for target in ("https://evil.example/", "//evil.example/github/"):
            answer = visitor.client.post("/github/login", data={"login": "octo-jo", "return_to": target})
            assert answer.headers["Location"] == "/"

    def test_before_any_authorization_there_is_no_setup_address(self, visitor: Visitor) -> None:
        visitor.client.post("/github/login", data={"login": "octo-jo"})
        assert install(visitor, post={"account": "octo-jo", "action": "install"}).status_code == 409

    def test_an_unknown_slug_is_a_404(self, visitor: Visitor) -> None:
        assert visitor.client.get("/github/apps/nobody/installations/new").status_code == 404

    def test_the_script_installs_for_the_person_who_authorized(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="allow")
        token = str(json_of(visitor.github_token(code=query_of(visitor.github_authorize())["code"]))["access_token"])
        assert logins(visitor, token) == []
        query = query_of(install(visitor))
        assert (query["setup_action"], query["state"]) == ("install", "st")
        [one] = visitor.github_get("/user/installations", token).get_json()["installations"]
        assert str(one["id"]) == query["installation_id"]

    def test_the_script_makes_a_pinned_person_and_keeps_them(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="allow", account="pinned-pia")
        token = str(json_of(visitor.github_token(code=query_of(visitor.github_authorize())["code"]))["access_token"])
        visitor.client.delete_cookie("sandbox_github_user", path="/github")
        first, second = query_of(install(visitor)), query_of(install(visitor))
        assert first["installation_id"] == second["installation_id"]
        assert logins(visitor, token) == ["pinned-pia"]


class TestApp:
    @pytest.fixture
    def installation_id(self, visitor: Visitor) -> int:
        return self.find(visitor, "solo-sam")

    def find(self, visitor: Visitor, login: str) -> int:
        accounts = json_of(visitor.client.get("/control/state"))["accounts"]
        assert isinstance(accounts, list)
        [user] = [one for one in accounts if one.get("login") == login]
        return int(user["installations"][0]["id"])

    def call(
        self,
        visitor: Visitor,
        clock: ManualClock,
        path: str,
        *,
        method: str = "GET",
        key: str | None = None,
        **claims: object,
    ) -> TestResponse:
        now = int(clock.now().timestamp())
        body = {"iat": now - 60, "exp": now + 540, "iss": visitor.secrets.github_client_id, **claims}
        signed = jwt.encode({"alg": "RS256"}, body, RSAKey.import_key(key or visitor.secrets.github_private_key))
        headers = {"Authorization": f"Bearer {signed}"}
        return visitor.client.open(f"/github/api/app{path}", method=method, headers=headers)

    def test_it_sees_its_installations(self, visitor: Visitor, clock: ManualClock, installation_id: int) -> None:
        assert len(self.call(visitor, clock, "/installations").get_json()) == 4
        one = json_of(self.call(visitor, clock, f"/installations/{installation_id}"))
        assert one["app_id"] == visitor.secrets.github_app_id
        assert one["suspended_at"] is None
        assert json_of(self.call(visitor, clock, ""))["slug"] == visitor.secrets.github_app_slug
        assert self.call(visitor, clock, "/installations/1").status_code == 404

    def test_it_sees_what_members_have_asked_owners_for_until_one_answers(
        self, visitor: Visitor, clock: ManualClock
    ) -> None:
        visitor.github_user("member-max")
        install(visitor, post={"account": "tidewater-coop", "action": "request"})
        [asked] = self.call(visitor, clock, "/installation-requests").get_json()
        assert (asked["account"]["login"], asked["requester"]["login"]) == ("tidewater-coop", "member-max")
        visitor.control("emit", provider="github", event="installation.created", account="tidewater-coop")
        assert self.call(visitor, clock, "/installation-requests").get_json() == []

    def test_it_may_name_itself_by_number(self, visitor: Visitor, clock: ManualClock) -> None:
        for iss in (visitor.secrets.github_app_id, str(visitor.secrets.github_app_id)):
            assert self.call(visitor, clock, "/installations", iss=iss).status_code == 200

    @pytest.mark.parametrize(
        ("claims", "words"),
        [
            ({"exp": 2**31}, "too far in the future"),
            ({"exp": 1}, "('exp') must be"),
            ({"exp": None}, "('exp') must be"),
            ({"iat": 2**31}, "('iat') must be"),
            ({"iss": "somebody"}, "('iss') must be"),
        ],
    )
    def test_a_wrong_claim_is_a_401_that_says_which(
        self, visitor: Visitor, clock: ManualClock, claims: dict[str, Any], words: str
    ) -> None:
        answer = self.call(visitor, clock, "/installations", **claims)
        assert answer.status_code == 401
        assert words in str(json_of(answer)["message"])

    def test_another_key_is_a_401(self, visitor: Visitor, clock: ManualClock) -> None:
        other = generate_secrets().github_private_key
        answer = self.call(visitor, clock, "/installations", key=other)
        assert json_of(answer)["message"] == "A JSON web token could not be decoded"
        assert visitor.client.get("/github/api/app/installations").status_code == 401

    def test_it_mints_long_tokens(self, visitor: Visitor, clock: ManualClock, installation_id: int) -> None:
        answer = self.call(visitor, clock, f"/installations/{installation_id}/access_tokens", method="POST")
        body = json_of(answer)
        assert answer.status_code == 201
        assert len(str(body["token"])) > 255
        assert str(body["token"]).startswith(f"ghs_{visitor.secrets.github_app_id}_")

    def test_a_suspended_installation_mints_nothing(self, visitor: Visitor, clock: ManualClock) -> None:
        number = self.find(visitor, "paused-pat")
        answer = self.call(visitor, clock, f"/installations/{number}/access_tokens", method="POST")
        assert answer.status_code == 403
        assert json_of(answer)["message"] == "This installation has been suspended"
        assert self.call(visitor, clock, f"/installations/{number}/suspended", method="DELETE").status_code == 204
        answer = self.call(visitor, clock, f"/installations/{number}/access_tokens", method="POST")
        assert answer.status_code == 201

    def test_it_can_take_itself_off(self, visitor: Visitor, clock: ManualClock, installation_id: int) -> None:
        path = f"/installations/{installation_id}"
        assert self.call(visitor, clock, path, method="DELETE").status_code == 204
        assert self.call(visitor, clock, path, method="DELETE").status_code == 404
        assert logins(visitor, visitor.github_user("solo-sam")["access_token"]) == []
