from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from broker.sandbox.log import Entry
from broker.sandbox.webhooks import github_signature, stripe_signature
from tests.sandbox.visitor import Visitor, json_of, query_of


class Hooks(BaseHTTPRequestHandler):
    """A broker's webhook endpoint, as far as the sandbox can tell."""

    received: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, dict(self.headers), body))
        self.send_response(202)
        self.end_headers()
        self.wfile.write(b"thanks")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the library's name)
        pass


@contextmanager
def listening() -> Iterator[str]:
    Hooks.received.clear()
    with HTTPServer(("127.0.0.1", 0), Hooks) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def log(visitor: Visitor) -> list[dict[str, Any]]:
    return list(visitor.client.get("/control/log").get_json()["data"])


def state(visitor: Visitor) -> dict[str, list[dict[str, Any]]]:
    return dict(visitor.client.get("/control/state").get_json())


class TestLog:
    def test_an_entry_has_every_field_of_the_contract(self, visitor: Visitor) -> None:
        visitor.client.post("/stripe/oauth/token?x=1", data="a=b", headers={"X-Probe": "yes"})
        [entry] = log(visitor)
        assert list(entry) == list(Entry.__dataclass_fields__)
        assert (entry["n"], entry["method"], entry["path"], entry["query"]) == (1, "POST", "/stripe/oauth/token", "x=1")
        assert entry["headers"]["X-Probe"] == "yes"
        assert (entry["body"], entry["status"], entry["fault"]) == ("a=b", 401, None)
        assert json.loads(entry["response"])["error"] == "invalid_client"
        assert entry["time"] == "2026-01-01T00:00:00.000Z"

    def test_control_and_static_files_are_not_in_it(self, visitor: Visitor) -> None:
        for path in ("/control/state", "/static-sandbox/style.css", "/favicon.ico"):
            assert visitor.client.get(path).status_code < 300
        assert log(visitor) == []

    def test_unknown_addresses_are(self, visitor: Visitor) -> None:
        visitor.client.get("/nothing")
        assert [entry["status"] for entry in log(visitor)] == [404]

    def test_newest_come_last_and_old_ones_can_be_left_out(self, visitor: Visitor) -> None:
        for path in ("/a", "/b", "/c"):
            visitor.client.get(path)
        assert [entry["path"] for entry in log(visitor)] == ["/a", "/b", "/c"]
        assert [entry["n"] for entry in visitor.client.get("/control/log?after=2").get_json()["data"]] == [3]

    def test_it_is_bounded(self, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("broker.sandbox.log.MOST_ENTRIES", 2)
        for path in ("/a", "/b", "/c"):
            visitor.client.get(path)
        assert [entry["path"] for entry in log(visitor)] == ["/b", "/c"]


class TestHosts:
    @pytest.mark.parametrize("host", ["127.0.0.1:8100", "localhost", "[::1]:8100", "LOCALHOST:1"])
    def test_loopback_names_are_answered(self, visitor: Visitor, host: str) -> None:
        assert visitor.client.get("/control/state", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize("host", ["sandbox.example", "127.0.0.1.evil.example", "0.0.0.0", "192.168.0.1:8100", ""])
    def test_others_are_refused(self, visitor: Visitor, host: str) -> None:
        for path in ("/control/state", "/stripe/v1/account", "/"):
            assert visitor.client.get(path, headers={"Host": host}).status_code == 403

    def test_pages_of_other_sites_cannot_steer(self, visitor: Visitor) -> None:
        answer = visitor.client.post("/control/reset", headers={"Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403


class TestConsent:
    @pytest.mark.parametrize("body", [{"auto": "maybe"}, {"auto": True}, {"account": 1}, {"who": "me"}])
    def test_nonsense_is_refused_with_a_sentence(self, visitor: Visitor, body: dict[str, Any]) -> None:
        answer = visitor.control("consent", **body)
        assert answer.status_code == 400
        assert str(json_of(answer)["error"]).endswith(".")

    def test_a_person_decides_again_after_null(self, visitor: Visitor) -> None:
        visitor.control("consent", auto="allow")
        visitor.control("consent", auto=None)
        assert visitor.stripe_authorize().status_code == 200

    def test_unknown_options_are_refused(self, visitor: Visitor) -> None:
        assert visitor.control("options", nothing=True).status_code == 400
        assert visitor.control("options", github_iss="yes").status_code == 400
        assert visitor.client.get("/control/options").get_json()["github_iss"] is True


class TestState:
    def test_it_shows_accounts_grants_and_credentials(self, visitor: Visitor) -> None:
        grant = visitor.stripe_connected()
        token = visitor.github_user("solo-sam")["access_token"]
        visitor.sequin(
            "POST",
            "/credentials",
            {
                "properties": {"kind": "stripe_oauth2", "secret": grant["access_token"], "test": True},
                "oauth_app_id": visitor.secrets.sequin_stripe_app_id,
            },
        )
        found = state(visitor)
        assert set(found) == {"accounts", "grants", "families", "reuses", "credentials"}
        assert [one["id"] for one in found["accounts"] if one.get("connected")] == [grant["stripe_user_id"]]
        assert {one["access_token"] for one in found["grants"]} == {grant["access_token"], token}
        [credential] = found["credentials"]
        assert credential["properties"]["secret"] == grant["access_token"]
        assert credential["import_count"] == 1

    def test_a_reset_forgets_all_but_the_registrations(self, visitor: Visitor) -> None:
        before = visitor.sequin("GET", "/oauth-apps").get_json()
        grant = visitor.stripe_connected()
        visitor.control("consent", auto="allow")
        visitor.control("reset")
        found = state(visitor)
        assert (found["grants"], found["credentials"], log(visitor)) == ([], [], [])
        assert visitor.stripe_authorize().status_code == 200
        headers = {"Authorization": f"Bearer {grant['access_token']}"}
        assert visitor.client.get("/stripe/v1/account", headers=headers).status_code == 401
        assert visitor.sequin("GET", "/oauth-apps").get_json() == before


class TestEmit:
    def test_a_stripe_event_is_signed_and_takes_effect(self, visitor: Visitor) -> None:
        with listening() as url:
            visitor.stripe_authorize(redirect_uri=f"{url}/oauth/stripe-test/callback")
            grant = visitor.stripe_connected()
            answer = json_of(visitor.control("emit", provider="stripe", url=url, app="stripe-test"))
        assert (answer["status"], answer["response"]) == (202, "thanks")
        [(path, headers, body)] = Hooks.received
        event = json.loads(body)
        assert path == "/hooks/stripe-test"
        assert event["type"] == "account.application.deauthorized"
        assert event["account"] == grant["stripe_user_id"]
        assert event["data"]["object"]["id"] == visitor.secrets.stripe_client_id
        t, v1 = (part.partition("=")[2] for part in headers["Stripe-Signature"].split(","))
        key = visitor.secrets.stripe_webhook_secret.encode()
        assert v1 == hmac.new(key, f"{t}.".encode() + body, hashlib.sha256).hexdigest()
        assert [one["status"] for one in state(visitor)["grants"]] == ["revoked"]

    def test_where_to_is_known_from_the_last_redirect_address(self, visitor: Visitor) -> None:
        with listening() as url:
            visitor.github_authorize(redirect_uri=f"{url}/oauth/gh/callback")
            visitor.control("emit", provider="github", event="installation", action="deleted", account="solo-sam")
        [(path, headers, body)] = Hooks.received
        assert path == "/hooks/gh"
        assert headers["X-GitHub-Event"] == "installation"
        payload = json.loads(body)
        assert (payload["action"], payload["installation"]["account"]["login"]) == ("deleted", "solo-sam")
        wanted = github_signature(visitor.secrets.github_webhook_secret, body)
        assert headers["X-Hub-Signature-256"] == wanted
        [user] = [one for one in state(visitor)["accounts"] if one.get("login") == "solo-sam"]
        assert user["installations"] == []

    def test_a_revoked_authorization_says_who_and_nothing_more(self, visitor: Visitor) -> None:
        token = visitor.github_user("solo-sam")["access_token"]
        with listening() as url:
            visitor.control("emit", provider="github", event="github_app_authorization", url=url)
        payload = json.loads(Hooks.received[0][2])
        assert set(payload) == {"action", "sender"}
        assert (payload["action"], payload["sender"]["login"]) == ("revoked", "solo-sam")
        assert visitor.github_get("/user", token).status_code == 401

    def test_an_approved_request_names_who_asked(self, visitor: Visitor) -> None:
        visitor.github_user("member-max")
        path = f"/github/apps/{visitor.secrets.github_app_slug}/installations/new"
        visitor.client.post(path, data={"account": "tidewater-coop", "action": "request"})
        with listening() as url:
            order = {"provider": "github", "type": "installation.created", "account": "tidewater-coop", "url": url}
            visitor.control("emit", **order)
        payload = json.loads(Hooks.received[0][2])
        assert (payload["requester"]["login"], payload["sender"]["login"]) == ("member-max", "octo-jo")

    def test_suspending_shows_in_the_installation(self, visitor: Visitor) -> None:
        with listening() as url:
            for action in ("suspend", "unsuspend"):
                visitor.control("emit", provider="github", action=action, account="solo-sam", url=url)
        suspended = [json.loads(body)["installation"]["suspended_at"] for _, _, body in Hooks.received]
        assert [moment is not None for moment in suspended] == [True, False]

    def test_without_effect_only_the_webhook_goes_out(self, visitor: Visitor) -> None:
        grant = visitor.stripe_connected()
        with listening() as url:
            order = {"provider": "stripe", "url": url, "effect": False, "id": "evt_1", "timestamp": 1, "secret": "x"}
            visitor.control("emit", **order)
            visitor.control("emit", provider="stripe", url=url, payload={"own": 1}, type="ping")
        first, second = Hooks.received
        assert json.loads(first[2])["id"] == "evt_1"
        assert first[1]["Stripe-Signature"] == stripe_signature("x", first[2], 1)
        assert json.loads(second[2]) == {"own": 1}
        headers = {"Authorization": f"Bearer {grant['access_token']}"}
        assert visitor.client.get("/stripe/v1/account", headers=headers).status_code == 200

    def test_the_stripe_apps_event_names_it_and_is_signed_with_its_secret(self, visitor: Visitor) -> None:
        with listening() as url:
            visitor.stripe_install(redirect_uri=f"{url}/oauth/stripe_app/callback")
            grant = visitor.stripe_installed()
            visitor.control("emit", provider="stripe_app", url=url)
        [(path, headers, body)] = Hooks.received
        event = json.loads(body)
        assert path == "/hooks/stripe_app"
        assert (event["account"], event["data"]["object"]["id"]) == (
            grant["stripe_user_id"],
            visitor.secrets.stripe_app_client_id,
        )
        signed = stripe_signature(visitor.secrets.stripe_app_webhook_secret, body, event["created"])
        assert headers["Stripe-Signature"] == signed

    def test_one_delivery_can_come_several_times_late_and_unsigned(self, visitor: Visitor) -> None:
        visitor.stripe_connected()
        with listening() as url:
            order = {"provider": "stripe", "url": url, "created": 1_700_000_000}
            visitor.control("emit", **order, times=3)
            visitor.control("emit", **order, unsigned=True)
        bodies = [body for _, _, body in Hooks.received]
        assert len(bodies) == 4
        assert len(set(bodies[:3])) == 1
        assert json.loads(bodies[0])["created"] == 1_700_000_000
        assert ["Stripe-Signature" in headers for _, headers, _ in Hooks.received] == [True, True, True, False]

    def test_nobody_listening_is_a_502(self, visitor: Visitor) -> None:
        answer = visitor.control("emit", provider="stripe", account="acct_x", url="http://127.0.0.1:1")
        assert answer.status_code == 502

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"provider": "sequin"},
            {"provider": "stripe"},
            {"provider": "stripe", "account": "acct_x"},
            {"provider": "stripe", "account": "acct_x", "url": "http://broker.example"},
            {"provider": "stripe", "account": "acct_x", "url": "ftp://127.0.0.1"},
            {"provider": "stripe", "account": 1},
            {"provider": "stripe", "payload": "x"},
            {"provider": "stripe", "timestamp": "x"},
            {"provider": "stripe", "created": True},
            {"provider": "stripe", "account": "acct_x", "url": "http://127.0.0.1:1", "times": 0},
            {"provider": "github", "account": "octo-jo", "url": "http://127.0.0.1:1"},
            {"provider": "github", "nothing": 1},
        ],
    )
    def test_nonsense_is_refused_with_a_sentence(self, visitor: Visitor, body: dict[str, Any]) -> None:
        answer = visitor.control("emit", **body)
        assert answer.status_code == 400
        assert str(json_of(answer)["error"]).endswith(".")

    def test_the_signatures_match_the_published_examples(self) -> None:
        stripe = stripe_signature("whsec_test", b'{"id":"evt_1","object":"event"}', 1700000000)
        assert stripe.endswith("v1=4c15fb2a43f93ef61eaa3e0893866d57cad9cad4223242cfb96f362480cb4021")
        github = github_signature("It's a Secret to Everybody", b"Hello, World!")
        assert github == "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

    def test_nothing_and_nowhere_are_no_drift(self, visitor: Visitor) -> None:
        assert visitor.control("drift", credential="x").status_code == 400
        assert visitor.control("drift", credential="x", oauth_app_id="nowhere").status_code == 400

    def test_the_health_of_nothing_cannot_be_set(self, visitor: Visitor) -> None:
        assert visitor.control("health", credential="x", status="error").status_code == 400


def test_denying_and_allowing_leave_no_cookie_for_the_broker(visitor: Visitor) -> None:
    visitor.control("consent", auto="allow")
    answer = visitor.github_authorize()
    assert "code" in query_of(answer)
    assert "Path=/github" in answer.headers["Set-Cookie"]
    assert "Set-Cookie" not in visitor.stripe_authorize().headers
