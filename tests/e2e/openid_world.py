"""A world with an OpenID provider beside it, at which people and operators sign in."""

from __future__ import annotations

from pathlib import Path

import requests
from joserfc.jwk import RSAKey

from tests.e2e.openid_provider import CLIENT_ID, CLIENT_SECRET, PASSWORD
from tests.e2e.world import Form, Person, World, free_port

CONFIG = """
[sign_in]
issuer = "{issuer}"
client_id = "{client_id}"
client_secret = {{ env = "OPENID_SECRET" }}
label = "Acme"

[operators.sign_in]
issuer = "{issuer}"
client_id = "{client_id}"
client_secret = {{ env = "OPENID_SECRET" }}
role_claim = "groups"
admin = "broker-admins"
viewer = "broker-viewers"
"""


class OpenIdWorld(World):
    """A world with a provider beside it."""

    def __init__(self, folder: Path, database_url: str, *, more: str = "") -> None:
        """`more` is added to the broker's configuration."""
        self.provider_port = free_port()
        self.provider_url = f"http://127.0.0.1:{self.provider_port}"
        self.provider_folder = folder / "provider"
        self.provider_folder.mkdir()
        config = folder / "broker.toml"
        config.write_text(more + CONFIG.format(issuer=f"{self.provider_url}/o", client_id=CLIENT_ID))
        super().__init__(folder, database_url, BROKER_CONFIG=str(config), OPENID_SECRET=CLIENT_SECRET)

    def program(self, name: str) -> tuple[str, ...]:
        return ("tests.e2e.openid_provider",) if name == "provider" else super().program(name)

    def start_provider(self, key: int = 1) -> None:
        """Start the provider with one more signing key."""
        pem = RSAKey.generate_key(2048).as_pem(private=True)
        (self.provider_folder / f"key-{key}.pem").write_bytes(pem)
        callbacks = [
            part for path in ("/sign-in/callback", "/ops/sign-in/callback") for part in ("--callback", self.url + path)
        ]
        self.start("provider", "--port", str(self.provider_port), "--folder", str(self.provider_folder), *callbacks)
        self._answers("provider", f"{self.provider_url}/o/.well-known/openid-configuration")


def log_in(person: Person, answer: requests.Response, name: str) -> requests.Response:
    """Follow to the provider, log in there if it asks, and return the redirect that leads back to the broker."""
    page = person.follow(answer, until=f"{person.world.url}/")
    if not page.is_redirect:
        fields = Form(page.text).forms[0][1] | {"username": name, "password": PASSWORD}
        page = person.follow(person.post(page.url, fields), until=f"{person.world.url}/")
    assert page.is_redirect, page.text
    return page


def sign_in(person: Person, name: str, page: str = "/sign-in", form: str = "/sign-in") -> requests.Response:
    """Sign in and return the page it ends on."""
    return person.follow(log_in(person, person.press(person.get(page), form), name))
