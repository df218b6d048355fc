"""A canned OpenID provider: answers as the book says, unless a test has it answer otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import responses
from joserfc import jwt
from joserfc.jwk import ECKey, RSAKey

from broker.clock import ManualClock
from broker.secret import Secret
from broker.settings import OperatorSignIn, PeopleSignIn

ISSUER = "https://id.acme.example/"
CLIENT = "oauth-broker"
CODE = "SENTINEL-CODE"
ACCESS = "SENTINEL-ACCESS"
CLIENT_SECRET = "SENTINEL-CLIENT-SECRET"


REGISTERED: dict[str, Any] = {"issuer": ISSUER, "client_id": CLIENT, "client_secret": Secret(CLIENT_SECRET)}


def people(**changes: Any) -> PeopleSignIn:
    """Return a registration for people."""
    return PeopleSignIn(**REGISTERED | changes)


def staff(**changes: Any) -> OperatorSignIn:
    """Return a registration for operators."""
    return OperatorSignIn(**REGISTERED | changes)


@cache
def key(name: str = "one") -> RSAKey:
    """Return a key pair; always the same for one name."""
    return RSAKey.generate_key(2048, {"kid": name, "use": "sig", "alg": "RS256"})


@dataclass
class CannedProvider:
    """Everything at ISSUER; `claims` go into the next ID token, None takes one out."""

    clock: ManualClock
    claims: dict[str, Any] = field(default_factory=dict)
    signer: RSAKey = field(default_factory=key)
    published: list[Any] = field(default_factory=lambda: [key()])
    discovery: dict[str, Any] = field(default_factory=dict)
    nonce: str = ""
    forms: list[dict[str, str]] = field(default_factory=list)
    # What the token endpoint answers instead of an ID token that is in order.
    answers: Callable[[], tuple[int, dict[str, Any]]] | None = None
    asked: list[str] = field(default_factory=list)

    def listen(self, canned: responses.RequestsMock) -> CannedProvider:
        """Answer from here on."""
        for method, path, answer in (
            ("GET", ".well-known/openid-configuration", self._discovery),
            ("GET", "keys", self._keys),
            ("POST", "token", self._token),
        ):
            canned.add_callback(method, f"{ISSUER}{path}", callback=answer)
        return self

    def consent(self, address: str) -> dict[str, str]:
        """Take a person's address as the provider does, and return what it asks for."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        self.nonce = asked["nonce"]
        return asked

    def id_token(self, **claims: Any) -> str:
        """Return an ID token that is in order but for these claims."""
        now = int(self.clock.now().timestamp())
        told = {
            "iss": ISSUER, "aud": CLIENT, "sub": "u-1", "iat": now, "exp": now + 300, "nonce": self.nonce,
            **self.claims, **claims,
        }  # fmt: skip
        kept = {name: value for name, value in told.items() if value is not None}
        return jwt.encode({"alg": "RS256", "kid": self.signer.kid}, kept, self.signer)

    def _discovery(self, _: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        self.asked.append("discovery")
        told = {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}authorize",
            "token_endpoint": f"{ISSUER}token",
            "jwks_uri": f"{ISSUER}keys",
            "id_token_signing_alg_values_supported": ["RS256"],
            "code_challenge_methods_supported": ["S256"],
        }
        return 200, {}, json.dumps(told | self.discovery)

    def _keys(self, _: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        self.asked.append("keys")
        found = [one.as_dict(private=False) if isinstance(one, RSAKey | ECKey) else one for one in self.published]
        return 200, {}, json.dumps({"keys": found})

    def _token(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        self.asked.append("token")
        self.forms.append({name: values[0] for name, values in parse_qs(str(request.body)).items()})
        if self.answers is not None:
            status, body = self.answers()
            return status, {}, json.dumps(body)
        body = {"access_token": ACCESS, "token_type": "Bearer", "id_token": self.id_token()}
        return 200, {}, json.dumps(body)
