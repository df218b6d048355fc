"""A provider as the contract test knows it: what the provider answers, canned, and what that means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from broker.errors import BrokerError
from broker.http import Answer
from broker.oauth import Grant, parse_grant
from broker.secret import Secret
from broker.settings import OAuthApp
from tests.house import START


@dataclass(frozen=True)
class Case:
    """One provider's canned answers, and what they mean."""

    app: OAuthApp
    # How the token request proves who we are, as the provider's own reference says.
    authenticates: str
    token: Mapping[str, Any]
    # What the API answers to GET, by address.
    answers: Mapping[str, Any]
    # The ids of the accounts that the grant reaches.
    accounts: tuple[str, ...]
    # Where a name stands: address, then the way to it.
    name_at: tuple[str | int, ...]
    # Provider dialects besides the ones of RFC 6749: status, body, how it is judged.
    refusals: tuple[tuple[int, Any, type[BrokerError]], ...] = ()
    # Addresses asked as ourselves, not as the person.
    as_ourselves: frozenset[str] = field(default_factory=frozenset)
    # What the API answers to GET besides, when it is asked about a connected account.
    probe_answers: Mapping[str, Any] = field(default_factory=dict)
    # What it answers to POST then.
    probe_posts: Mapping[str, Any] = field(default_factory=dict)
    # What the API answers to POST while the accounts are read, by address.
    posts: Mapping[str, Any] = field(default_factory=dict)
    # Those of them that take the token in the form, with our client id and secret (RFC 7662).
    introspects: frozenset[str] = field(default_factory=frozenset)
    # Of a kind that Sequin does not document: the members it is imported with, required ones first.
    members: tuple[Mapping[str, type], Mapping[str, type]] | None = None
    # A webhook that means something here, and the headers that come with a body signed with a secret.
    event: Mapping[str, Any] = field(default_factory=dict)
    signs: Callable[[bytes, Secret, datetime], Mapping[str, str]] | None = None


def body(folder: str, name: str) -> Any:
    """Return a canned body: the JSON file called `name` beside the module whose `__file__` is `folder`."""
    return json.loads((Path(folder).parent / f"{name}.json").read_text(encoding="utf-8"))


@dataclass
class Canned:
    """A way out (`Call`) that answers every call alike and remembers what was asked."""

    body: Any = None
    status: int = 200
    asked: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)

    def __call__(self, method: str, url: str, **sent: Any) -> Answer:
        """Answer."""
        self.asked.append((method, url, sent))
        raw = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return Answer(self.status, {}, raw, url)


def granted(case: Case, **changes: Any) -> Grant:
    """Return the grant that a case's token answer makes, with changes; a member that is None is left out."""
    answer = {name: value for name, value in {**case.token, **changes}.items() if value is not None}
    return parse_grant(answer, received_at=START)
