"""Provider webhooks: signed as the provider signs, and sent to the broker."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

TIMEOUT = 10.0  # GitHub's
LONGEST_ANSWER = 100_000


@dataclass(frozen=True)
class Delivery:
    """One webhook, ready to go."""

    url: str
    headers: Mapping[str, str]
    body: bytes

    def unsigned(self) -> Delivery:
        """Return it without what proves who sent it."""
        kept = {name: value for name, value in self.headers.items() if "Signature" not in name}
        return replace(self, headers=kept)


def stripe_signature(secret: str, body: bytes, timestamp: int) -> str:
    """Return the Stripe-Signature header."""
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={signed}"


def github_signature(secret: str, body: bytes) -> str:
    """Return the X-Hub-Signature-256 header."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def stripe_delivery(url: str, payload: object, secret: str, timestamp: int) -> Delivery:
    """Make a Stripe event ready."""
    body = json.dumps(payload).encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": "Stripe/1.0 (sandbox stand-in)",
        "Stripe-Signature": stripe_signature(secret, body, timestamp),
    }
    return Delivery(url, headers, body)


def github_delivery(url: str, event: str, payload: object, secret: str, delivery_id: str, app_id: int) -> Delivery:
    """Make a GitHub event ready. There is no time in this scheme: only the delivery id tells a replay."""
    body = json.dumps(payload).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/sandbox",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery_id,
        "X-GitHub-Hook-ID": "1",
        "X-GitHub-Hook-Installation-Target-Type": "integration",
        "X-GitHub-Hook-Installation-Target-ID": str(app_id),
        "X-Hub-Signature-256": github_signature(secret, body),
    }
    return Delivery(url, headers, body)


def send(delivery: Delivery) -> tuple[int, str]:
    """Post it; return the broker's status and answer. Raises OSError or HTTPException when nobody answers."""
    parts = urlsplit(delivery.url)
    secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        connection.request("POST", parts.path, delivery.body, dict(delivery.headers))
        answer = connection.getresponse()
        return answer.status, answer.read(LONGEST_ANSWER).decode("utf-8", "replace")
    finally:
        connection.close()
