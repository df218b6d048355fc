"""Everything the stand-ins and a broker must agree on: generated once, kept in DATA_DIR/sandbox.json."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import string
import tempfile
import uuid
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.secret import random_token

FILE_NAME = "sandbox.json"
ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, repr=False)
class Secrets:
    """Client ids, keys and tokens of the three stand-ins. Without a repr, so that no log shows them by accident."""

    stripe_client_id: str
    stripe_secret_key: str
    # A second, live-mode pair: for trying what happens when keys and modes are mixed. Never printed.
    stripe_live_client_id: str
    stripe_live_secret_key: str
    stripe_webhook_secret: str
    # A Stripe App: another developer's account, so with keys of its own. The live pair is never printed.
    stripe_app_client_id: str
    stripe_app_secret_key: str
    stripe_app_live_client_id: str
    stripe_app_live_secret_key: str
    stripe_app_webhook_secret: str
    github_client_id: str
    github_client_secret: str
    # An OAuth App besides the GitHub App: comma scopes, `gho_` tokens.
    github_oauth_client_id: str
    github_oauth_client_secret: str
    github_app_slug: str
    github_app_id: int
    github_private_key: str
    github_webhook_secret: str
    sequin_api_token: str
    sequin_stripe_app_id: str
    sequin_stripe_apps_app_id: str
    sequin_github_app_id: str
    sequin_github_oauth_app_id: str

    def derived(self, name: str, length: int) -> str:
        """Return hexadecimal characters that stay the same for a name, so that a new stand-in needs no field here."""
        key = self.sequin_api_token.encode()
        return hmac.new(key, name.encode(), hashlib.sha512).hexdigest()[:length]


def load_secrets(data_dir: Path) -> Secrets:
    """Read `data_dir/sandbox.json`; make it first when there is none. Any number of processes may do so at once.

    Raises ValueError with a sentence when the file is there but unusable.
    """
    path = Path(data_dir) / FILE_NAME
    if not path.exists():
        _publish(generate_secrets(), path)
    return _read(path)


def generate_secrets() -> Secrets:
    """Make a fresh set; nothing is written."""
    return Secrets(
        stripe_client_id=f"ca_{alphanumeric(32)}",
        stripe_secret_key=f"sk_test_{alphanumeric(48)}",
        stripe_live_client_id=f"ca_{alphanumeric(32)}",
        stripe_live_secret_key=f"sk_live_{alphanumeric(48)}",
        stripe_webhook_secret=f"whsec_{alphanumeric(32)}",
        stripe_app_client_id=f"ca_{alphanumeric(32)}",
        stripe_app_secret_key=f"sk_test_{alphanumeric(48)}",
        stripe_app_live_client_id=f"ca_{alphanumeric(32)}",
        stripe_app_live_secret_key=f"sk_live_{alphanumeric(48)}",
        stripe_app_webhook_secret=f"whsec_{alphanumeric(32)}",
        github_client_id=f"Iv23li{alphanumeric(14)}",
        github_client_secret=secrets.token_hex(20),
        github_oauth_client_id=f"Ov23li{alphanumeric(14)}",
        github_oauth_client_secret=secrets.token_hex(20),
        github_app_slug=f"sandbox-broker-{secrets.token_hex(3)}",
        github_app_id=100_000 + secrets.randbelow(900_000),
        github_private_key=_private_key(),
        github_webhook_secret=random_token(),
        sequin_api_token=secrets.token_urlsafe(48),
        sequin_stripe_app_id=str(uuid.uuid4()),
        sequin_stripe_apps_app_id=str(uuid.uuid4()),
        sequin_github_app_id=str(uuid.uuid4()),
        sequin_github_oauth_app_id=str(uuid.uuid4()),
    )


def alphanumeric(length: int) -> str:
    """Return random letters and digits, as Stripe's and GitHub's identifiers have."""
    # Of 256 values some letters get one more than others, which matters to nobody here; the system is asked once.
    return "".join(ALPHANUMERIC[byte % len(ALPHANUMERIC)] for byte in secrets.token_bytes(length))


def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


def _publish(made: Secrets, path: Path) -> None:
    """Put the whole file there at once, unless somebody else was faster: then theirs stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".sandbox-")  # mkstemp makes it 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(made), file, indent=2)
        # A hard link appears complete or not at all and, unlike a rename, never replaces the winner of a race.
        Path(path).hardlink_to(name)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


def _read(path: Path) -> Secrets:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: stored[field.name] for field in fields(Secrets)}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a sandbox file of this version. Delete it; a new one will be made.") from None
    return Secrets(**known)
