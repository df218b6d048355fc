"""Redirect addresses: which ones are taken, and where the broker was last seen."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CALLBACK = re.compile(r"/oauth/([^/]+)/callback\Z")


def is_loopback(host: str) -> bool:
    """Tell whether a Host header, or the host part of an address, names this machine."""
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK
    except ValueError:
        return False


def is_registered(uri: str) -> bool:
    """Tell whether an address counts as registered: any broker's callback on this machine.

    The sandbox cannot know the broker's port in advance, so it takes all of them and pins the one used.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    plain = parts.scheme in ("http", "https") and not parts.fragment and "@" not in parts.netloc
    return plain and is_loopback(parts.netloc) and bool(CALLBACK.search(parts.path))


def with_query(uri: str, **values: str | None) -> str:
    """Add members to an address's query; those that are None are left out."""
    parts = urlsplit(uri)
    query = parse_qsl(parts.query, keep_blank_values=True)
    query += [(name, value) for name, value in values.items() if value is not None]
    return urlunsplit(parts._replace(query=urlencode(query)))


def origin(uri: str) -> str:
    """Return scheme, host and port."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


class Seen:
    """The last redirect address of each client: where webhooks and GitHub's setup address are found from."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def remember(self, client_id: str, redirect_uri: str) -> None:
        """Note the address a client has just used."""
        self._last[client_id] = redirect_uri

    def last(self, client_id: str) -> str | None:
        """Return the address this client used last."""
        return self._last.get(client_id)

    def setup_url(self, client_id: str) -> str | None:
        """Return GitHub's setup address: it lies beside the callback."""
        uri = self.last(client_id)
        return uri and CALLBACK.sub(r"/oauth/\1/setup", uri)

    def app_key(self, client_id: str) -> str | None:
        """Return the broker's key for this OAuth app, as its callback address shows it."""
        found = CALLBACK.search(urlsplit(self.last(client_id) or "").path)
        return found and found[1]
