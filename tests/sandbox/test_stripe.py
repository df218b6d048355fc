from __future__ import annotations

from typing import Any

import pytest

from broker.clock import ManualClock
from tests.sandbox.visitor import STRIPE_CALLBACK, Visitor, json_of, query_of

NORTHWIND = "acct_1NorthwindCoffee0"


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **more}


class TestConsent:
    def test_the_page_needs_one_click(self, visitor: Visitor) -> None:
        page = visitor.stripe_authorize().text
        assert page.count(" checked") == 1
        assert "Northwind Coffee" in page

    def test_allowing_returns_code_scope_and_state(self, visitor: Visitor) -> None:
        answer = visitor.stripe_authorize(post={"decision": "allow", "account": NORTHWIND})
        query = query_of(answer)
        assert answer.status_code == 303
        assert answer.headers["Location"].startswith(f"{STRIPE_CALLBACK}?")
        assert query["code"].startswith("ac_")
        assert (query["scope"], query["state"]) == ("read_write", "st")
        assert "iss" not in query

    def test_denying_returns_access_denied_and_state(self, visitor: Visitor) -> None:
        answer = visitor.stripe_authorize(post={"decision": "deny"})
        assert query_of(answer) == {
            "error": "access_denied",
            "error_description": "The user denied your request",
            "state": "st",
        }

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"client_id": "ca_unknown"}, "invalid_request"),
            ({"response_type": None}, "invalid_request"),
            ({"response_type": "token"}, "unsupported_response_type"),
            ({"scope": "read_only"}, "invalid_scope"),
            ({"scope": None}, "invalid_scope"),
            ({"redirect_uri": "https://evil.example/oauth/stripe/callback"}, "invalid_redirect_uri"),
            ({"redirect_uri": "http://127.0.0.1:8000/elsewhere"}, "invalid_redirect_uri"),
            ({"redirect_uri": "http://127.0.0.1@evil.example/oauth/stripe/callback"}, "invalid_redirect_uri"),
        ],
    )
    def test_every_other_problem_is_json_on_the_spot_and_no_redirect(
        self, visitor: Visitor, changes: dict[str, Any], error: str
    ) -> None:
        answer = visitor.stripe_authorize(**changes)
        assert "Location" not in answer.headers
        body = json_of(answer)
        assert (body["error"], body["state"]) == (error, "st")

    @pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000"])
    def test_any_callback_on_this_machine_is_registered(self, visitor: Visitor, host: str) -> None:
        answer = visitor.stripe_authorize(redirect_uri=f"http://{host}/oauth/stripe-test/callback")
        assert answer.status_code == 200

    def test_the_script_allows_a_fresh_account_each_time(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="allow")
        codes = [query_of(visitor.stripe_authorize())["code"] for _ in range(2)]
        answers = [json_of(visitor.stripe_token(grant_type="authorization_code", code=code)) for code in codes]
        assert len({answer["stripe_user_id"] for answer in answers}) == 2

    def test_the_script_allows_a_pinned_account(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="allow", account="acct_pinned")
        code = query_of(visitor.stripe_authorize())["code"]
        answer = json_of(visitor.stripe_token(grant_type="authorization_code", code=code))
        assert answer["stripe_user_id"] == "acct_pinned"

    def test_the_script_denies(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="deny")
        assert query_of(visitor.stripe_authorize())["error"] == "access_denied"


class TestToken:
    def test_a_code_gives_a_grant(self, visitor: Visitor) -> None:
        grant = visitor.stripe_connected()
        assert grant["stripe_user_id"] == NORTHWIND
        assert grant["livemode"] is False
        assert grant["token_type"] == "bearer"
        assert grant["scope"] == "read_write"
        assert grant["access_token"].startswith("sk_test_")
        assert grant["refresh_token"].startswith("rt_")
        assert "expires_in" not in grant

    def test_the_key_is_taken_in_three_ways(self, visitor: Visitor) -> None:
        key = visitor.secrets.stripe_secret_key
        form = {"grant_type": "authorization_code"}
        ways = [
            visitor.client.post("/stripe/oauth/token", data={**form, "code": visitor.stripe_code()}, auth=(key, "")),
            visitor.client.post(
                "/stripe/oauth/token", data={**form, "code": visitor.stripe_code()}, headers=bearer(key)
            ),
            visitor.client.post(
                "/stripe/oauth/token", data={**form, "code": visitor.stripe_code(), "client_secret": key}
            ),
        ]
        assert [answer.status_code for answer in ways] == [200, 200, 200]

    def test_the_deprecated_members_can_be_switched_off(self, visitor: Visitor) -> None:
        visitor.control("options", stripe_tokens=False)
        assert set(visitor.stripe_connected()) == {"livemode", "scope", "stripe_user_id", "token_type"}

    def test_a_second_use_is_refused_and_ends_the_connection(self, visitor: Visitor) -> None:
        code = visitor.stripe_code()
        token = str(json_of(visitor.stripe_token(grant_type="authorization_code", code=code))["access_token"])
        assert visitor.client.get("/stripe/v1/account", headers=bearer(token)).status_code == 200
        again = visitor.stripe_token(grant_type="authorization_code", code=code)
        assert again.status_code == 400
        assert json_of(again) == {
            "error": "invalid_grant",
            "error_description": "This authorization code has already been used. "
            "All tokens issued with this code have been revoked.",
        }
        assert visitor.client.get("/stripe/v1/account", headers=bearer(token)).status_code == 401

    def test_a_code_lives_five_minutes(self, visitor: Visitor, clock: ManualClock) -> None:
        code = visitor.stripe_code()
        clock.advance(300)
        assert json_of(visitor.stripe_token(grant_type="authorization_code", code=code))["error"] == "invalid_grant"

    def test_an_unknown_code_is_named(self, visitor: Visitor) -> None:
        body = json_of(visitor.stripe_token(grant_type="authorization_code", code="ac_none"))
        assert body["error_description"] == "Authorization code does not exist: ac_none"

    def test_a_key_of_the_other_mode_is_refused_and_spends_nothing(self, visitor: Visitor) -> None:
        code = visitor.stripe_code()
        live = visitor.secrets.stripe_live_secret_key
        refused = json_of(visitor.stripe_token(key=live, grant_type="authorization_code", code=code))
        assert refused["error_description"] == "Authorization code provided does not belong to you."
        assert visitor.stripe_token(grant_type="authorization_code", code=code).status_code == 200

    @pytest.mark.parametrize(
        ("form", "error", "description"),
        [
            ({}, "invalid_request", "No grant type specified"),
            ({"grant_type": "password"}, "unsupported_grant_type", "Unsupported grant type: password"),
            ({"grant_type": "authorization_code"}, "invalid_request", "No authorization code specified"),
        ],
    )
    def test_malformed_requests_are_explained(
        self, visitor: Visitor, form: dict[str, str], error: str, description: str
    ) -> None:
        answer = visitor.stripe_token(**form)
        assert answer.status_code == 400
        assert json_of(answer) == {"error": error, "error_description": description}

    def test_without_a_key_the_error_is_a_string(self, visitor: Visitor) -> None:
        answer = visitor.client.post("/stripe/oauth/token", data={"grant_type": "authorization_code"})
        body = json_of(answer)
        assert (answer.status_code, body["error"]) == (401, "invalid_client")
        assert str(body["error_description"]).endswith("as a client_secret POST parameter.")

    def test_with_a_wrong_key_the_error_is_an_object(self, visitor: Visitor) -> None:
        answer = visitor.stripe_token(key=visitor.secrets.stripe_client_id, grant_type="authorization_code", code="x")
        assert answer.status_code == 401
        assert isinstance(json_of(answer)["error"], dict)

    def test_refreshing_replaces_the_access_token_and_shows_no_refresh_token(self, visitor: Visitor) -> None:
        grant = visitor.stripe_connected()
        fresh = json_of(visitor.stripe_token(grant_type="refresh_token", refresh_token=grant["refresh_token"]))
        assert fresh["access_token"] != grant["access_token"]
        assert "refresh_token" not in fresh
        assert visitor.client.get("/stripe/v1/account", headers=bearer(grant["access_token"])).status_code == 401


class TestDeauthorize:
    def deauthorize(self, visitor: Visitor, **form: str) -> tuple[int, dict[str, object]]:
        answer = visitor.client.post(
            "/stripe/oauth/deauthorize", data=form, auth=(visitor.secrets.stripe_secret_key, "")
        )
        return answer.status_code, json_of(answer)

    def test_it_ends_the_connection_without_needing_a_token(self, visitor: Visitor) -> None:
        grant = visitor.stripe_connected()
        form = {"client_id": visitor.secrets.stripe_client_id, "stripe_user_id": NORTHWIND}
        assert self.deauthorize(visitor, **form) == (200, {"stripe_user_id": NORTHWIND})
        assert visitor.client.get("/stripe/v1/account", headers=bearer(grant["access_token"])).status_code == 401
        status, body = self.deauthorize(visitor, **form)
        assert (status, body["error"]) == (401, "invalid_client")
        assert body["error_description"] == (
            f"This application is not connected to stripe account {NORTHWIND}, or that account does not exist."
        )

    def test_a_wrong_client_id_is_the_same_code_with_another_sentence(self, visitor: Visitor) -> None:
        status, body = self.deauthorize(visitor, client_id="ca_other", stripe_user_id=NORTHWIND)
        assert (status, body["error"]) == (401, "invalid_client")
        assert "not connected" not in str(body["error_description"])

    def test_a_missing_parameter_is_an_invalid_request(self, visitor: Visitor) -> None:
        status, body = self.deauthorize(visitor, client_id=visitor.secrets.stripe_client_id)
        assert (status, body["error"]) == (400, "invalid_request")


class TestAccount:
    def test_a_token_shows_its_own_account_and_no_other(self, visitor: Visitor) -> None:
        token = visitor.stripe_connected()["access_token"]
        own = json_of(visitor.client.get("/stripe/v1/account", headers=bearer(token)))
        assert (own["id"], own["object"]) == (NORTHWIND, "account")
        other = visitor.client.get("/stripe/v1/accounts/acct_1GlobexPottery000", headers=bearer(token))
        assert other.status_code == 403

    def test_the_platform_key_shows_connected_accounts(self, visitor: Visitor) -> None:
        visitor.stripe_connected()
        key = visitor.secrets.stripe_secret_key
        direct = visitor.client.get(f"/stripe/v1/accounts/{NORTHWIND}", headers=bearer(key))
        acting = visitor.client.get("/stripe/v1/account", headers=bearer(key, **{"Stripe-Account": NORTHWIND}))
        assert json_of(direct)["id"] == json_of(acting)["id"] == NORTHWIND
        other = visitor.client.get("/stripe/v1/accounts/acct_1GlobexPottery000", headers=bearer(key))
        assert other.status_code == 403
        assert json_of(visitor.client.get("/stripe/v1/account", headers=bearer(key)))["id"] != NORTHWIND

    def test_names_may_be_missing(self, visitor: Visitor) -> None:
        token = visitor.stripe_connected("acct_1NamelessStore000")["access_token"]
        account = json_of(visitor.client.get("/stripe/v1/account", headers=bearer(token)))
        assert account["email"] is None

    def test_a_bad_key_is_an_api_error(self, visitor: Visitor) -> None:
        for headers in ({}, bearer("sk_test_wrong")):
            answer = visitor.client.get("/stripe/v1/account", headers=headers)
            assert answer.status_code == 401
            assert isinstance(json_of(answer)["error"], dict)


class TestApps:
    @pytest.mark.parametrize("link", ["", "chnlink_test/"])
    def test_the_published_and_the_external_link_both_install(self, visitor: Visitor, link: str) -> None:
        assert "Install" in visitor.stripe_install(link=link).text
        back = visitor.stripe_install(link=link, post={"decision": "allow", "account": NORTHWIND})
        assert set(query_of(back)) == {"code", "state"}

    def test_another_link_is_none(self, visitor: Visitor) -> None:
        assert json_of(visitor.stripe_install(link="test/"))["error"] == "invalid_request"

    def test_each_flavour_has_clients_of_its_own(self, visitor: Visitor) -> None:
        connect, app = visitor.secrets.stripe_client_id, visitor.secrets.stripe_app_client_id
        assert json_of(visitor.stripe_install(client_id=connect))["error"] == "invalid_request"
        assert json_of(visitor.stripe_authorize(client_id=app))["error"] == "invalid_request"

    def test_denying_returns_access_denied_and_state(self, visitor: Visitor) -> None:
        assert query_of(visitor.stripe_install(post={"decision": "deny"}))["error"] == "access_denied"

    def test_a_code_is_redeemed_where_it_belongs(self, visitor: Visitor) -> None:
        code = query_of(visitor.stripe_install(post={"decision": "allow", "account": NORTHWIND}))["code"]
        wrong = (visitor.secrets.stripe_secret_key, visitor.secrets.stripe_app_live_secret_key)
        for key in wrong:
            refused = visitor.stripe_apps_token(key=key, grant_type="authorization_code", code=code)
            assert json_of(refused)["error_description"] == "Authorization code provided does not belong to you."
        assert visitor.stripe_apps_token(grant_type="authorization_code", code=code).status_code == 200

    def test_a_token_has_no_expiry_and_dies_after_an_hour(self, visitor: Visitor, clock: ManualClock) -> None:
        grant = visitor.stripe_installed()
        assert set(grant) == {
            "access_token", "livemode", "refresh_token", "scope", "stripe_publishable_key", "stripe_user_id",
            "token_type",
        }  # fmt: skip
        assert grant["scope"] == "stripe_apps"
        headers = bearer(str(grant["access_token"]))
        assert visitor.client.get("/stripe/v1/account", headers=headers).status_code == 200
        clock.advance(3600)
        assert visitor.client.get("/stripe/v1/account", headers=headers).status_code == 401

    def test_the_refresh_token_rolls(self, visitor: Visitor) -> None:
        old = str(visitor.stripe_installed()["refresh_token"])
        fresh = json_of(visitor.stripe_apps_token(grant_type="refresh_token", refresh_token=old))
        assert fresh["refresh_token"] != old
        again = visitor.stripe_apps_token(grant_type="refresh_token", refresh_token=old)
        assert (again.status_code, json_of(again)["error"]) == (400, "invalid_grant")

    def test_a_refresh_token_lives_a_year_from_its_last_roll(self, visitor: Visitor, clock: ManualClock) -> None:
        token = str(visitor.stripe_installed()["refresh_token"])
        for _ in range(2):
            clock.advance(300 * 24 * 3600)
            fresh = json_of(visitor.stripe_apps_token(grant_type="refresh_token", refresh_token=token))
            token = str(fresh["refresh_token"])
        clock.advance(365 * 24 * 3600)
        late = visitor.stripe_apps_token(grant_type="refresh_token", refresh_token=token)
        assert json_of(late)["error"] == "invalid_grant"

    def test_the_key_is_taken_by_basic_authentication_only(self, visitor: Visitor) -> None:
        key = visitor.secrets.stripe_app_secret_key
        form = {"grant_type": "authorization_code", "code": "x"}
        path = "/stripe/v1/oauth/token"
        assert visitor.client.post(path, data={**form, "client_secret": key}).status_code == 401
        assert visitor.client.post(path, data=form, headers=bearer(key)).status_code == 401

    def test_an_uninstalled_app_is_told_so_and_cannot_refresh(self, visitor: Visitor) -> None:
        grant = visitor.stripe_installed()
        visitor.control("emit", provider="stripe_app", url="http://127.0.0.1:1")
        refused = visitor.client.get("/stripe/v1/account", headers=bearer(str(grant["access_token"])))
        assert (refused.status_code, json_of(refused)["error"]["code"]) == (403, "account_invalid")
        again = visitor.stripe_apps_token(grant_type="refresh_token", refresh_token=grant["refresh_token"])
        assert json_of(again)["error"] == "invalid_grant"


class TestControlledAccounts:
    """Accounts that another platform controls."""

    HARBOUR = "acct_1HarbourMarket00"

    def test_connect_ends_up_with_a_second_new_account(self, visitor: Visitor) -> None:
        assert "belongs to another platform" in visitor.stripe_authorize().text
        assert visitor.stripe_connected(self.HARBOUR)["stripe_user_id"] != self.HARBOUR

    def test_a_stripe_app_is_installed_on_them_all_the_same(self, visitor: Visitor) -> None:
        assert visitor.stripe_installed(self.HARBOUR)["stripe_user_id"] == self.HARBOUR

    def test_their_access_cannot_be_ended_from_outside(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="allow", account=self.HARBOUR)
        code = query_of(visitor.stripe_authorize())["code"]
        visitor.stripe_token(grant_type="authorization_code", code=code)
        form = {"client_id": visitor.secrets.stripe_client_id, "stripe_user_id": self.HARBOUR}
        key = visitor.secrets.stripe_secret_key
        refused = visitor.client.post("/stripe/oauth/deauthorize", data=form, auth=(key, ""))
        assert refused.status_code == 401
        assert "no_deauth_on_controlled_account" in refused.text
