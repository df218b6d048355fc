from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import pytest

from broker.clock import ManualClock
from tests.sandbox.visitor import GITHUB_CALLBACK, Visitor, json_of, query_of


def oauth_app(visitor: Visitor) -> dict[str, Any]:
    return {"client_id": visitor.secrets.github_oauth_client_id}


def oauth_app_keys(visitor: Visitor) -> dict[str, Any]:
    return {**oauth_app(visitor), "client_secret": visitor.secrets.github_oauth_client_secret}


class TestAuthorize:
    def test_the_page_needs_one_click(self, visitor: Visitor) -> None:
        page = visitor.github_authorize().text
        assert page.count(" checked") == 1
        assert 'value="octo-jo" checked' in page

    def test_the_asked_for_login_is_preselected(self, visitor: Visitor) -> None:
        assert 'value="many-mona" checked' in visitor.github_authorize(login="many-mona").text

    def test_authorizing_returns_code_state_and_issuer(self, visitor: Visitor) -> None:
        answer = visitor.github_authorize(post={"decision": "authorize", "login": "octo-jo"})
        query = query_of(answer)
        assert answer.headers["Location"].startswith(f"{GITHUB_CALLBACK}?")
        assert set(query) == {"code", "state", "iss"}
        assert query["iss"] == "http://localhost/github/login/oauth"

    def test_the_issuer_can_be_switched_off(self, visitor: Visitor) -> None:
        visitor.control("options", github_iss=False)
        answer = visitor.github_authorize(post={"decision": "authorize", "login": "octo-jo"})
        assert "iss" not in query_of(answer)

    def test_cancelling_is_access_denied(self, visitor: Visitor) -> None:
        query = query_of(visitor.github_authorize(post={"decision": "cancel"}))
        assert (query["error"], query["state"]) == ("access_denied", "st")
        assert query["error_description"] == "The user has denied your application access."

    def test_an_unknown_client_is_a_404_page(self, visitor: Visitor) -> None:
        answer = visitor.github_authorize(client_id="nobody")
        assert (answer.status_code, answer.mimetype) == (404, "text/html")

    def test_a_foreign_redirect_address_is_reported_to_the_registered_one(self, visitor: Visitor) -> None:
        foreign = "https://evil.example/oauth/github/callback"
        assert visitor.github_authorize(redirect_uri=foreign).status_code == 404
        visitor.github_authorize()
        answer = visitor.github_authorize(redirect_uri=foreign)
        assert answer.headers["Location"].startswith(GITHUB_CALLBACK)
        assert query_of(answer)["error"] == "redirect_uri_mismatch"

    @pytest.mark.parametrize(
        "changes",
        [
            {"code_challenge_method": "plain"},
            {"code_challenge_method": None},
            {"code_challenge": None},
            {"code_challenge": "short"},
        ],
    )
    def test_only_s256_challenges_are_taken(self, visitor: Visitor, changes: dict[str, Any]) -> None:
        assert query_of(visitor.github_authorize(**changes))["error"] == "invalid_request"

    def test_who_authorized_before_goes_straight_back_unless_asked_to_choose(self, visitor: Visitor) -> None:
        visitor.github_code("solo-sam")
        assert "code" in query_of(visitor.github_authorize())
        assert visitor.github_authorize(prompt="select_account").status_code == 200

    def test_the_script_allows_a_fresh_person_each_time(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="allow")
        people = []
        for _ in range(2):
            token = json_of(visitor.github_token(code=query_of(visitor.github_authorize())["code"]))
            people.append(json_of(visitor.github_get("/user", str(token["access_token"]))))
        assert people[0]["id"] != people[1]["id"]
        assert people[0]["login"] != people[1]["login"]


class TestToken:
    def test_the_app_gets_an_expiring_token_without_scope(self, visitor: Visitor) -> None:
        grant = json_of(visitor.github_token(code=visitor.github_code(scope="repo")))
        assert str(grant.pop("access_token")).startswith("ghu_")
        assert str(grant.pop("refresh_token")).startswith("ghr_")
        assert grant == {
            "expires_in": 28800,
            "refresh_token_expires_in": 15897600,
            "scope": "",
            "token_type": "bearer",
        }

    def test_expiry_can_be_switched_off(self, visitor: Visitor) -> None:
        visitor.control("options", github_expiring=False)
        assert set(visitor.github_user()) == {"access_token", "scope", "token_type"}

    def test_the_default_format_is_a_form(self, visitor: Visitor) -> None:
        answer = visitor.github_token(code=visitor.github_code(), accept="*/*")
        assert answer.mimetype == "application/x-www-form-urlencoded"
        assert parse_qs(answer.text)["token_type"] == ["bearer"]

    def test_xml_is_there_for_who_asks(self, visitor: Visitor) -> None:
        answer = visitor.github_token(code="bad", accept="application/xml")
        assert "<error>bad_verification_code</error>" in answer.text

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"client_secret": "wrong"}, "incorrect_client_credentials"),
            ({"client_secret": None}, "incorrect_client_credentials"),
            ({"code": "wrong"}, "bad_verification_code"),
            ({"redirect_uri": "http://localhost:8000/oauth/github/callback"}, "redirect_uri_mismatch"),
            ({"redirect_uri": None}, "redirect_uri_mismatch"),
            ({"code_verifier": "wrong"}, "bad_verification_code"),
            ({"code_verifier": None}, "bad_verification_code"),
            ({"grant_type": "refresh_token", "refresh_token": "wrong"}, "bad_refresh_token"),
        ],
    )
    def test_errors_come_with_status_200(self, visitor: Visitor, changes: dict[str, Any], error: str) -> None:
        answer = visitor.github_token(**{"code": visitor.github_code(), **changes})
        body = json_of(answer)
        assert (answer.status_code, body["error"]) == (200, error)
        assert set(body) == {"error", "error_description", "error_uri"}

    def test_an_unknown_client_is_a_404(self, visitor: Visitor) -> None:
        answer = visitor.github_token(client_id="nobody", code="x")
        assert (answer.status_code, json_of(answer)) == (404, {"error": "Not Found"})

    def test_a_code_works_once_and_for_ten_minutes(self, visitor: Visitor, clock: ManualClock) -> None:
        code = visitor.github_code()
        assert "access_token" in json_of(visitor.github_token(code=code))
        assert json_of(visitor.github_token(code=code))["error"] == "bad_verification_code"
        late = visitor.github_code()
        clock.advance(600)
        assert json_of(visitor.github_token(code=late))["error"] == "bad_verification_code"

    def test_a_verifier_without_a_challenge_is_refused(self, visitor: Visitor) -> None:
        plain: dict[str, Any] = {"code_challenge": None, "code_challenge_method": None}
        assert json_of(visitor.github_token(code=visitor.github_code(**plain)))["error"] == "bad_verification_code"
        assert "access_token" in json_of(visitor.github_token(code=visitor.github_code(**plain), code_verifier=None))

    def test_refreshing_ends_the_old_pair(self, visitor: Visitor) -> None:
        old = visitor.github_user()
        refresh = {"grant_type": "refresh_token", "refresh_token": old["refresh_token"]}
        fresh = json_of(visitor.github_token(**refresh))
        assert visitor.github_get("/user", str(fresh["access_token"])).status_code == 200
        assert visitor.github_get("/user", old["access_token"]).status_code == 401
        assert json_of(visitor.github_token(**refresh))["error"] == "bad_refresh_token"

    def test_a_token_ends_after_eight_hours(self, visitor: Visitor, clock: ManualClock) -> None:
        token = visitor.github_user()["access_token"]
        clock.advance(28_800)
        answer = visitor.github_get("/user", token)
        assert (answer.status_code, json_of(answer)["message"]) == (401, "Bad credentials")


class TestOAuthApp:
    def token(self, visitor: Visitor, **changes: str | None) -> dict[str, object]:
        code = visitor.github_code(**{**oauth_app(visitor), **changes})
        return json_of(visitor.github_token(code=code, **oauth_app_keys(visitor)))

    def test_scopes_come_back_with_commas(self, visitor: Visitor) -> None:
        grant = self.token(visitor, scope="repo gist")
        assert grant["scope"] == "repo,gist"
        assert str(grant["access_token"]).startswith("gho_")
        assert "refresh_token" not in grant
        answer = visitor.github_get("/user", str(grant["access_token"]))
        assert answer.headers["X-OAuth-Scopes"] == "repo, gist"

    def test_without_a_scope_the_earlier_ones_are_granted(self, visitor: Visitor) -> None:
        self.token(visitor, scope="repo gist")
        assert self.token(visitor, scope=None)["scope"] == "repo,gist"

    def test_offline_access_gives_an_expiring_token_and_is_no_scope(self, visitor: Visitor) -> None:
        grant = self.token(visitor, scope="repo offline_access")
        assert (grant["scope"], grant["expires_in"]) == ("repo", 28800)

    def test_the_eleventh_token_pushes_out_the_first(self, visitor: Visitor) -> None:
        tokens = [str(self.token(visitor, scope="repo")["access_token"]) for _ in range(11)]
        statuses = [visitor.github_get("/user", token).status_code for token in tokens]
        assert statuses == [401, *[200] * 10]

    def test_its_tokens_cannot_list_installations(self, visitor: Visitor) -> None:
        token = str(self.token(visitor, scope="repo")["access_token"])
        assert visitor.github_get("/user/installations", token).status_code == 403


class TestApi:
    @pytest.mark.parametrize(
        ("login", "accounts"),
        [
            ("octo-jo", []),
            ("solo-sam", ["solo-sam"]),
            ("many-mona", ["many-mona", "globex-pottery"]),
            ("member-max", ["globex-pottery"]),
            ("paused-pat", ["paused-pat"]),
        ],
    )
    def test_a_person_sees_the_installations_they_can_reach(
        self, visitor: Visitor, login: str, accounts: list[str]
    ) -> None:
        body = visitor.github_get("/user/installations", visitor.github_user(login)["access_token"]).get_json()
        assert body["total_count"] == len(accounts)
        assert [one["account"]["login"] for one in body["installations"]] == accounts
        assert all(one["app_id"] == visitor.secrets.github_app_id for one in body["installations"])

    def test_installations_come_in_pages(self, visitor: Visitor) -> None:
        token = visitor.github_user("many-mona")["access_token"]
        first = visitor.github_get("/user/installations?per_page=1", token)
        second = visitor.github_get("/user/installations?per_page=1&page=2", token)
        assert [len(page.get_json()["installations"]) for page in (first, second)] == [1, 1]
        assert first.get_json()["total_count"] == 2
        assert 'page=2>; rel="next"' in first.headers["Link"]
        assert "next" not in second.headers["Link"]

    def test_a_suspended_installation_is_listed_as_such(self, visitor: Visitor) -> None:
        token = visitor.github_user("paused-pat")["access_token"]
        [one] = visitor.github_get("/user/installations", token).get_json()["installations"]
        assert one["suspended_at"] is not None

    def test_membership_tells_owners_from_members(self, visitor: Visitor) -> None:
        for login, role in (("many-mona", "admin"), ("member-max", "member")):
            token = visitor.github_user(login)["access_token"]
            body = json_of(visitor.github_get("/user/memberships/orgs/globex-pottery", token))
            assert (body["state"], body["role"]) == ("active", role)
        outsider = visitor.github_user("solo-sam")["access_token"]
        assert visitor.github_get("/user/memberships/orgs/globex-pottery", outsider).status_code == 404

    def test_an_unknown_token_is_bad_credentials(self, visitor: Visitor) -> None:
        for path in ("/user", "/user/installations", "/user/memberships/orgs/globex-pottery"):
            assert json_of(visitor.github_get(path, "ghu_none"))["message"] == "Bad credentials"

    def test_an_unknown_path_is_githubs_404(self, visitor: Visitor) -> None:
        answer = visitor.github_get("/nothing/here", "x")
        assert (answer.status_code, json_of(answer)["message"]) == (404, "Not Found")


class TestApplications:
    def call(self, visitor: Visitor, method: str, path: str, token: str) -> int:
        auth = (visitor.secrets.github_client_id, visitor.secrets.github_client_secret)
        address = f"/github/api/applications/{visitor.secrets.github_client_id}/{path}"
        return visitor.client.open(address, method=method, json={"access_token": token}, auth=auth).status_code

    def test_checking_and_revoking_one_token(self, visitor: Visitor) -> None:
        token = visitor.github_user()["access_token"]
        other = visitor.github_user()["access_token"]
        assert self.call(visitor, "POST", "token", token) == 200
        assert self.call(visitor, "DELETE", "token", token) == 204
        assert self.call(visitor, "POST", "token", token) == 404
        assert self.call(visitor, "POST", "token", other) == 200

    def test_revoking_the_grant_takes_every_token_and_the_authorization(self, visitor: Visitor) -> None:
        tokens = [visitor.github_user()["access_token"] for _ in range(2)]
        assert self.call(visitor, "DELETE", "grant", tokens[0]) == 204
        assert [visitor.github_get("/user", token).status_code for token in tokens] == [401, 401]
        assert visitor.github_authorize().status_code == 200

    def test_resetting_replaces_a_token(self, visitor: Visitor) -> None:
        token = visitor.github_user()["access_token"]
        assert self.call(visitor, "PATCH", "token", token) == 200
        assert visitor.github_get("/user", token).status_code == 401

    def test_bad_input_and_bad_credentials_are_refused(self, visitor: Visitor) -> None:
        address = f"/github/api/applications/{visitor.secrets.github_client_id}/token"
        auth = (visitor.secrets.github_client_id, visitor.secrets.github_client_secret)
        assert visitor.client.post(address, json={}, auth=auth).status_code == 422
        assert visitor.client.post(address, json={"access_token": "x"}, auth=(auth[0], "no")).status_code == 401
        assert visitor.client.post(address, json={"access_token": "x"}).status_code == 404
