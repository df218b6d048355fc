from __future__ import annotations

import json
import uuid

import pytest
from werkzeug.test import TestResponse

from broker.clock import ManualClock
from tests.sandbox.visitor import Visitor, json_of

STRIPE = {
    "kind": "stripe_oauth2",
    "secret": "sk_test_abc",
    "test": True,
    "name": "Northwind",
    "stripe_user_id": "acct_1",
}
GITHUB = {"kind": "github_app", "account_type": "User", "account_login": "octo-jo", "installation_id": 7}


def post(visitor: Visitor, properties: object = STRIPE, **body: object) -> TestResponse:
    kind = properties.get("kind", "") if isinstance(properties, dict) else ""
    secrets = visitor.secrets
    app = secrets.sequin_github_app_id if str(kind).startswith("github") else secrets.sequin_stripe_app_id
    return visitor.sequin("POST", "/credentials", {"properties": properties, "oauth_app_id": app, **body})


def errors(answer: TestResponse) -> object:
    assert answer.status_code == 422
    return json_of(answer)["validation_errors"]


class TestAccess:
    @pytest.mark.parametrize(
        "header", [None, "bearer {}", "Token {}", "Bearer wrong", "Bearer {}, Bearer {}", "Bearer  {}"]
    )
    def test_everything_but_one_exact_bearer_header_is_a_401(self, visitor: Visitor, header: str | None) -> None:
        token = visitor.secrets.sequin_api_token
        headers = {"Authorization": header.format(token, token)} if header else {}
        for path in ("/credentials", "/oauth-apps", "/credentials/x"):
            answer = visitor.client.get(f"/sequin/v1{path}", headers=headers)
            assert answer.status_code == 401
            assert set(json_of(answer)) == {"summary"}

    def test_each_reason_has_a_sentence_of_its_own(self, visitor: Visitor) -> None:
        headers: tuple[dict[str, str], ...] = (
            {},
            {"Authorization": "x"},
            {"Authorization": "Bearer x"},
            {"Authorization": "Bearer x,Bearer x"},
        )
        answers = [visitor.client.get("/sequin/v1/credentials", headers=each) for each in headers]
        assert len({str(json_of(answer)["summary"]) for answer in answers}) == 4


class TestImport:
    def test_the_answer_is_the_bare_credential_with_secrets_masked(self, visitor: Visitor) -> None:
        answer = post(visitor, metadata={"end_user_id": "u1"})
        body = json_of(answer)
        assert answer.status_code == 200
        assert uuid.UUID(str(body["id"])).version == 4
        assert (body["provider"], body["kind"]) == ("stripe", "stripe_oauth2")
        assert body["properties"] == {**STRIPE, "secret": "*" * 11}
        assert body["metadata"] == {"end_user_id": "u1"}
        assert body["created_at"] == "2026-01-01T00:00:00Z"
        assert body["health"] == {"status": "ok", "notes": [], "time": "2026-01-01T00:00:00Z"}
        app = body["oauth_app"]
        assert isinstance(app, dict)
        assert app["client_secret"] == "*" * 10
        assert "health" not in app

    def test_the_same_account_again_updates(self, visitor: Visitor, clock: ManualClock) -> None:
        first = json_of(post(visitor, metadata={"a": 1}))
        clock.advance(60)
        second = json_of(post(visitor, {**STRIPE, "secret": "sk_test_new"}))
        assert second == {**first, "updated_at": "2026-01-01T00:01:00Z"}
        [kept] = visitor.client.get("/control/state").get_json()["credentials"]
        assert kept["properties"]["secret"] == "sk_test_new"
        assert kept["metadata"] == {"a": 1}
        assert kept["import_count"] == 2

    @pytest.mark.parametrize(
        ("first", "second", "same"),
        [
            (STRIPE, {**STRIPE, "stripe_user_id": "acct_2"}, False),
            (STRIPE, {**STRIPE, "test": False}, False),
            ({**STRIPE, "stripe_user_id": None}, {**STRIPE, "stripe_user_id": None, "name": "Other"}, True),
            ({**STRIPE, "stripe_user_id": None}, {**STRIPE, "stripe_user_id": None, "secret": "sk_new"}, False),
            (GITHUB, {**GITHUB, "account_login": "renamed"}, True),
            (GITHUB, {**GITHUB, "installation_id": 8}, False),
        ],
    )
    def test_what_counts_as_the_same_depends_on_the_kind(
        self, visitor: Visitor, first: dict[str, object], second: dict[str, object], same: bool
    ) -> None:
        ids = {json_of(post(visitor, each))["id"] for each in (first, second)}
        assert (len(ids) == 1) is same

    @pytest.mark.parametrize("kind", ["airtable_oauth2", "linear_oauth2", "hubspot_oauth2", "salesforce_oauth2"])
    def test_the_other_kinds_are_known_too(self, visitor: Visitor, kind: str) -> None:
        provider = kind.removesuffix("_oauth2")
        app = {"provider": provider, "client_id": "c", "client_secret": "s", "name": "n"}
        app_id = json_of(visitor.sequin("POST", "/oauth-apps", app))["id"]
        properties = {
            "kind": kind,
            "refresh_token": "r",
            "access_token": "a",
            "scope": "s",
            "scopes": ["s"],
            "hub_domain": "d",
            "hub_id": 1,
            "linear_org_id": "1",
            "linear_org_name": "n",
            "instance_url": "https://N.my.salesforce.com/",
        }
        assert json_of(post(visitor, properties, oauth_app_id=app_id))["provider"] == provider

    def test_a_name_is_mirrored_where_the_kind_has_one(self, visitor: Visitor) -> None:
        unnamed = {**STRIPE, "name": None}
        assert json_of(post(visitor, unnamed, name="Shown"))["properties"] == {
            **STRIPE,
            "name": "Shown",
            "secret": "*" * 11,
        }

    def test_unknown_members_are_dropped_without_a_word(self, visitor: Visitor) -> None:
        assert "extra" not in str(post(visitor, {**STRIPE, "extra": 1}, extra=2).text)

    @pytest.mark.parametrize(
        ("properties", "wanted"),
        [
            (None, {"properties": ["can't be blank"]}),
            ("text", {"properties": ["is invalid"]}),
            ({}, {"properties": {"kind": ["can't be blank"]}}),
            ({"kind": "github"}, {"properties": {"kind": ["is invalid"]}}),
            ({"kind": "stripe_sequin"}, {"properties": {"kind": ["is invalid"]}}),
            ({"kind": ["stripe_key"]}, {"properties": {"kind": ["is invalid"]}}),
            ({**STRIPE, "secret": None}, {"properties": {"secret": ["can't be blank"]}}),
            ({**STRIPE, "secret": "***"}, {"properties": {"secret": ["is masked; send the value itself"]}}),
            ({**STRIPE, "test": "yes"}, {"properties": {"test": ["is invalid"]}}),
            ({**GITHUB, "account_type": "user"}, {"properties": {"account_type": ["is invalid"]}}),
            ({**GITHUB, "installation_id": "7"}, {"properties": {"installation_id": ["is invalid"]}}),
        ],
    )
    def test_what_is_wrong_is_named_by_field(self, visitor: Visitor, properties: object, wanted: object) -> None:
        assert errors(post(visitor, properties)) == wanted
        assert visitor.client.get("/control/state").get_json()["credentials"] == []

    def test_the_oauth_app_must_be_there_and_of_the_provider(self, visitor: Visitor) -> None:
        assert errors(post(visitor, oauth_app_id=None)) == {"oauth_app_id": ["can't be blank"]}
        assert errors(post(visitor, oauth_app_id=str(uuid.uuid4()))) == {"oauth_app_id": ["does not exist"]}
        wrong = errors(post(visitor, oauth_app_id=visitor.secrets.sequin_github_app_id))
        assert wrong == {"oauth_app_id": ["is an OAuth app for github, not for stripe"]}

    def test_undocumented_kinds_are_a_switch(self, visitor: Visitor) -> None:
        properties = {"kind": "github_oauth2", "access_token": "gho_x", "scope": "repo", "account_login": "octo-jo"}
        assert json_of(post(visitor, properties))["kind"] == "github_oauth2"
        visitor.control("options", sequin_undocumented_kinds=False)
        assert post(visitor, properties).status_code == 422

    def test_bodies_that_are_no_json_object_are_a_400(self, visitor: Visitor) -> None:
        headers = {"Authorization": f"Bearer {visitor.secrets.sequin_api_token}", "Content-Type": "application/json"}
        broken = visitor.client.post("/sequin/v1/credentials", data="{", headers=headers)
        assert (broken.status_code, json_of(broken)) == (400, {"errors": {"detail": "Bad Request"}})
        assert visitor.sequin("POST", "/credentials", [1]).status_code == 400

    def test_there_is_no_import_by_id(self, visitor: Visitor) -> None:
        answer = visitor.sequin("POST", f"/credentials/{uuid.uuid4()}", {})
        assert (answer.status_code, json_of(answer)) == (404, {"errors": {"detail": "Not Found"}})


class TestCredential:
    def test_get_list_patch_and_delete(self, visitor: Visitor) -> None:
        made = json_of(post(visitor, name="One", metadata={"a": 1, "b": {"c": 2}}))
        path = f"/credentials/{made['id']}"
        assert json_of(visitor.sequin("GET", path)) == made
        assert json_of(visitor.sequin("GET", "/credentials")) == {"data": [made]}
        changed = json_of(visitor.sequin("PATCH", path, {"metadata": {"d": 4}, "properties": {"secret": "x"}}))
        assert changed == {**made, "metadata": {"d": 4}}
        assert json_of(visitor.sequin("DELETE", path)) == {"id": made["id"], "deleted": True}
        again = visitor.sequin("DELETE", path)
        assert (again.status_code, json_of(again)) == (404, {"summary": "Credential not found"})
        assert json_of(post(visitor))["id"] != made["id"]

    def test_patching_with_wrong_types_is_refused(self, visitor: Visitor) -> None:
        path = f"/credentials/{json_of(post(visitor))['id']}"
        wrong = errors(visitor.sequin("PATCH", path, {"name": 1, "metadata": "x"}))
        assert wrong == {"name": ["is invalid"], "metadata": ["is invalid"]}

    def test_filters_combine(self, visitor: Visitor) -> None:
        post(visitor, metadata={"a": 1, "b": {"c": 2, "d": 3}})
        post(visitor, GITHUB, metadata={"a": 1})

        def count(**query: str) -> int:
            return len(visitor.sequin("GET", "/credentials", None, **query).get_json()["data"])

        assert count(provider="github") == 1
        assert count(kind="stripe_oauth2", provider="stripe") == 1
        assert count(kind="stripe_oauth2", provider="github") == 0
        assert count(metadata=json.dumps({"a": 1})) == 2
        assert count(metadata=json.dumps({"b": {"c": 2}})) == 1
        assert count(**{"health.status": "error"}) == 0
        assert visitor.sequin("GET", "/credentials", None, metadata="{").status_code == 400
        visitor.control("options", sequin_filters=False)
        assert count(provider="nothing") == 2

    def test_health_can_be_set_and_is_reset_by_the_next_import(self, visitor: Visitor) -> None:
        made = json_of(post(visitor))
        assert visitor.control("health", credential=made["id"], status="error", notes=["401"]).status_code == 200
        health = visitor.sequin("GET", f"/credentials/{made['id']}").get_json()["health"]
        assert (health["status"], health["notes"]) == ("error", ["401"])
        assert post(visitor).get_json()["health"]["status"] == "ok"
        visitor.control("options", sequin_health=False)
        assert "health" not in json_of(post(visitor))


class TestOAuthApps:
    def test_the_apps_are_registered_already(self, visitor: Visitor) -> None:
        apps = visitor.sequin("GET", "/oauth-apps").get_json()["data"]
        found = {app["id"]: (app["provider"], app["client_id"], app["client_secret"]) for app in apps}
        secrets = visitor.secrets
        registered = {
            secrets.sequin_stripe_app_id: ("stripe", secrets.stripe_client_id, "*" * 10),
            secrets.sequin_stripe_apps_app_id: ("stripe", secrets.stripe_app_client_id, "*" * 10),
            secrets.sequin_github_app_id: ("github", secrets.github_client_id, "*" * 10),
            secrets.sequin_github_oauth_app_id: ("github", secrets.github_oauth_client_id, "*" * 10),
        }
        assert registered.items() <= found.items()

    def test_their_secrets_are_shown_when_asked_for(self, visitor: Visitor) -> None:
        apps = visitor.sequin("GET", "/oauth-apps", None, truncate_secrets="false", provider="stripe").get_json()
        wanted = [visitor.secrets.stripe_secret_key, visitor.secrets.stripe_app_secret_key]
        assert [app["client_secret"] for app in apps["data"]] == wanted

    def test_create_get_patch_and_delete(self, visitor: Visitor) -> None:
        body = {"provider": "stripe", "client_id": "ca_x", "client_secret": "s", "name": "Two", "metadata": {"a": 1}}
        made = json_of(visitor.sequin("POST", "/oauth-apps", body))
        assert (made["client_id"], made["client_secret"], made["metadata"]) == ("ca_x", "*" * 10, {"a": 1})
        path = f"/oauth-apps/{made['id']}"
        assert json_of(visitor.sequin("GET", path)) == made
        assert json_of(visitor.sequin("PATCH", path, {"name": "New", "client_id": "ignored"}))["name"] == "New"
        assert json_of(visitor.sequin("DELETE", path)) == {"id": made["id"], "deleted": True}
        assert visitor.sequin("GET", path).status_code == 404

    def test_one_in_use_cannot_be_deleted(self, visitor: Visitor) -> None:
        post(visitor)
        assert visitor.sequin("DELETE", f"/oauth-apps/{visitor.secrets.sequin_stripe_app_id}").status_code == 422

    def test_what_is_missing_or_wrong_is_named(self, visitor: Visitor) -> None:
        blank = ["can't be blank"]
        assert errors(visitor.sequin("POST", "/oauth-apps", {})) == {
            "provider": blank,
            "client_id": blank,
            "client_secret": blank,
            "name": blank,
        }
        body = {"provider": "nobody", "client_id": "c", "client_secret": "****", "name": "n"}
        assert set(dict(errors(visitor.sequin("POST", "/oauth-apps", body)))) == {"provider", "client_secret"}  # type: ignore[call-overload]
