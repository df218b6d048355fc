"""What a broker and the browser in front of it ask of a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from broker.sandbox import Secrets

STRIPE_CALLBACK = "http://127.0.0.1:8000/oauth/stripe/callback"
STRIPE_APP_CALLBACK = "http://127.0.0.1:8000/oauth/stripe_app/callback"
GITHUB_CALLBACK = "http://127.0.0.1:8000/oauth/github/callback"
VERIFIER = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
CHALLENGE = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


@dataclass
class Visitor:
    """Sends the requests that the flows are made of."""

    client: FlaskClient
    secrets: Secrets

    def control(self, path: str, **body: object) -> TestResponse:
        """Steer the sandbox."""
        return self.client.post(f"/control/{path}", json=body)

    def stripe_authorize(self, *, post: dict[str, str] | None = None, **changes: str | None) -> TestResponse:
        """Open Stripe's consent page, or answer it with `post`."""
        query = {
            "response_type": "code",
            "client_id": self.secrets.stripe_client_id,
            "scope": "read_write",
            "redirect_uri": STRIPE_CALLBACK,
            "state": "st",
            **changes,
        }
        return self._open("/stripe/oauth/authorize", query, post)

    def stripe_code(self, account: str = "acct_1NorthwindCoffee0") -> str:
        """Consent at Stripe; return the code."""
        answer = self.stripe_authorize(post={"decision": "allow", "account": account})
        return query_of(answer)["code"]

    def stripe_token(self, *, key: str | None = None, path: str = "/stripe/oauth/token", **form: str) -> TestResponse:
        """Ask Stripe's token endpoint, with the key by Basic authentication."""
        auth = (self.secrets.stripe_secret_key if key is None else key, "")
        return self.client.post(path, data=form, auth=auth)

    def stripe_connected(self, account: str = "acct_1NorthwindCoffee0") -> dict[str, Any]:
        """Connect an account; return the token answer."""
        answer = self.stripe_token(grant_type="authorization_code", code=self.stripe_code(account))
        return json_of(answer)

    def stripe_install(
        self, *, link: str = "chnlink_test/", post: dict[str, str] | None = None, **changes: str | None
    ) -> TestResponse:
        """Open a Stripe App's install page, or answer it with `post`; `link` is empty for the published app's."""
        query = {
            "client_id": self.secrets.stripe_app_client_id,
            "redirect_uri": STRIPE_APP_CALLBACK,
            "state": "st",
            **changes,
        }
        return self._open(f"/stripe/oauth/v2/{link}authorize", query, post)

    def stripe_apps_token(self, *, key: str | None = None, **form: str) -> TestResponse:
        """Ask the token endpoint of Stripe Apps."""
        chosen = self.secrets.stripe_app_secret_key if key is None else key
        return self.stripe_token(key=chosen, path="/stripe/v1/oauth/token", **form)

    def stripe_installed(self, account: str = "acct_1NorthwindCoffee0") -> dict[str, Any]:
        """Install the Stripe App; return the token answer."""
        code = query_of(self.stripe_install(post={"decision": "allow", "account": account}))["code"]
        return json_of(self.stripe_apps_token(grant_type="authorization_code", code=code))

    def github_authorize(self, *, post: dict[str, str] | None = None, **changes: str | None) -> TestResponse:
        """Open GitHub's authorize page, or answer it with `post`."""
        query = {
            "client_id": self.secrets.github_client_id,
            "redirect_uri": GITHUB_CALLBACK,
            "state": "st",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
            **changes,
        }
        return self._open("/github/login/oauth/authorize", query, post)

    def github_code(self, login: str = "octo-jo", **changes: str | None) -> str:
        """Consent at GitHub; return the code."""
        return query_of(self.github_authorize(post={"decision": "authorize", "login": login}, **changes))["code"]

    def github_token(self, *, accept: str = "application/json", **changes: str | None) -> TestResponse:
        """Ask GitHub's token endpoint."""
        form = {
            "client_id": self.secrets.github_client_id,
            "client_secret": self.secrets.github_client_secret,
            "redirect_uri": GITHUB_CALLBACK,
            "code_verifier": VERIFIER,
            **changes,
        }
        kept = {name: value for name, value in form.items() if value is not None}
        return self.client.post("/github/login/oauth/access_token", data=kept, headers={"Accept": accept})

    def github_user(self, login: str = "octo-jo") -> dict[str, Any]:
        """Authorize as somebody; return the token answer."""
        return json_of(self.github_token(code=self.github_code(login)))

    def github_get(self, path: str, token: str) -> TestResponse:
        """Ask GitHub's API."""
        return self.client.get(f"/github/api{path}", headers={"Authorization": f"Bearer {token}"})

    def sequin(self, method: str, path: str, body: object = None, **query: str) -> TestResponse:
        """Ask Sequin's API with the right token."""
        headers = {"Authorization": f"Bearer {self.secrets.sequin_api_token}"}
        return self.client.open(f"/sequin/v1{path}", method=method, json=body, query_string=query, headers=headers)

    def _open(self, path: str, query: dict[str, str | None], post: dict[str, str] | None) -> TestResponse:
        kept = {name: value for name, value in query.items() if value is not None}
        if post is None:
            return self.client.get(path, query_string=kept)
        return self.client.post(path, query_string=kept, data=post)


def query_of(answer: TestResponse) -> dict[str, str]:
    """Return the query of the address an answer redirects to."""
    return {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query).items()}


def json_of(answer: TestResponse) -> dict[str, Any]:
    """Return an answer's JSON object."""
    body = answer.get_json()
    assert isinstance(body, dict)
    return body
