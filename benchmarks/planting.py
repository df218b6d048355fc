"""Connect links, and connections with sealed tokens, of people nobody has seen before, written in one go."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import sqlalchemy as sa

from broker.attach import grant_binding
from broker.db import table
from broker.models import Claim, ConnectedAccount, EndUser, ImportState, Job, JobState, Link
from broker.oauth import parse_grant
from broker.references import new_id, new_ref
from broker.secret import digest, random_token
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.e2e.world import World

ROWS_AT_ONCE = 500
ASKING_AT_ONCE = 4
REFRESHED_APP = "stripe_app"
"""Whose tokens end and are refreshed."""


def plant_links(world: World, count: int, *, app: str = "stripe") -> list[str]:
    """Add links for one OAuth app, each for a person of its own, and return their tokens."""
    tokens = [random_token() for _ in range(count)]
    with world.database() as connection:
        for start in range(0, count, ROWS_AT_ONCE):
            _plant(connection, tokens[start : start + ROWS_AT_ONCE], app)
    return tokens


def _plant(connection: sa.Connection, tokens: list[str], app: str) -> None:
    now = datetime.now(UTC)
    key = table(EndUser).c.id
    people = connection.execute(
        sa.insert(table(EndUser)).returning(key, sort_by_parameter_order=True),
        [{"external_id": new_id("usr"), "created_at": now} for _ in tokens],
    ).scalars()
    link: dict[str, Any] = {
        "apps": [app], "host_metadata": {}, "confirm": False, "manage": False, "created_by": "cli",
        "created_at": now, "expires_at": now + timedelta(hours=6),
    }  # fmt: skip
    connection.execute(
        sa.insert(table(Link)),
        [
            link | {"public_id": new_id("lnk"), "token_hash": digest(token), "end_user_id": person}
            for token, person in zip(tokens, people, strict=True)
        ],
    )


def tokens_of_sandbox(world: World, count: int) -> list[dict[str, Any]]:
    """Let the sandbox, where all is allowed, give tokens that can be refreshed, each for an account of its own."""
    with ThreadPoolExecutor(ASKING_AT_ONCE) as pool:
        return list(pool.map(lambda _: _token(world), range(count)))


def _token(world: World) -> dict[str, Any]:
    environment = world.environment
    sent = {
        "response_type": "code", "client_id": environment["STRIPE_APP_CLIENT_ID"], "state": "bench",
        "redirect_uri": f"{world.url}/oauth/{REFRESHED_APP}/callback",
    }  # fmt: skip
    place = urlsplit(environment["STRIPE_MARKETPLACE_URL"])
    browser = HTTPConnection(place.netloc, timeout=60)
    browser.request("GET", f"{place.path}/oauth/v2/authorize?{urlencode(sent)}")
    answer = browser.getresponse()
    answer.read()
    code = parse_qs(urlsplit(answer.headers["Location"]).query)["code"][0]
    proof = base64.b64encode(f"{environment['STRIPE_APP_CLIENT_SECRET']}:".encode()).decode()
    headers = {"Authorization": f"Basic {proof}", "Content-Type": "application/x-www-form-urlencoded"}
    form = urlencode({"grant_type": "authorization_code", "code": code})
    browser.request("POST", f"{urlsplit(environment['STRIPE_API_URL']).path}/v1/oauth/token", form, headers)
    told: dict[str, Any] = json.loads(browser.getresponse().read())
    browser.close()
    return told


def made_up_tokens(count: int) -> Iterator[dict[str, Any]]:
    """Yield what a provider would have answered for accounts that nobody knows."""
    for number in range(count):
        yield {
            "access_token": f"sk_test_{number:024}", "refresh_token": f"rt_{number:024}", "token_type": "bearer",
            "scope": "read_write", "stripe_user_id": f"acct_planted{number:06}", "livemode": False,
        }  # fmt: skip


def plant_imported(
    world: World, answers: Iterable[Mapping[str, Any]], *, app: str, lifetime: int | None = None
) -> list[int]:
    """Add connections of a Stripe app that were imported an hour ago, one for each of a provider's token answers.

    `lifetime` is that of the access tokens in seconds. They are sealed with the world's first key. Returns their keys.
    """
    kid, _, key = world.environment["BROKER_ENCRYPTION_KEYS"].partition(",")[0].partition(":")
    vault = Vault((EncryptionKey(kid, base64.b64decode(key)),))
    keys: list[int] = []
    some: list[Mapping[str, Any]] = []
    with world.database() as connection:
        for answer in answers:
            some.append(answer)
            if len(some) == ROWS_AT_ONCE:
                keys += _plant_imported(connection, vault, some, app, lifetime)
                some = []
        if some:
            keys += _plant_imported(connection, vault, some, app, lifetime)
    return keys


def _plant_imported(
    connection: sa.Connection, vault: Vault, answers: Sequence[Mapping[str, Any]], app: str, lifetime: int | None
) -> list[int]:
    rows = list(_imported(connection, vault, answers, app, lifetime))
    connection.execute(
        sa.insert(table(Claim)),
        [{name: row[name] for name in ("app_key", "account_id", "mode", "end_user_id")} for row in rows],
    )
    accounts = table(ConnectedAccount)
    return list(
        connection.execute(
            sa.insert(accounts).returning(accounts.c.id, sort_by_parameter_order=True), rows
        ).scalars()
    )  # fmt: skip


def _imported(
    connection: sa.Connection, vault: Vault, answers: Sequence[Mapping[str, Any]], app: str, lifetime: int | None
) -> Iterator[dict[str, Any]]:
    ago = datetime.now(UTC) - timedelta(hours=1)
    people = connection.execute(
        sa.insert(table(EndUser)).returning(table(EndUser).c.id, sort_by_parameter_order=True),
        [{"external_id": new_id("usr"), "created_at": ago} for _ in answers],
    ).scalars()
    for answer, person in zip(answers, people, strict=True):
        ref, account = new_ref(), str(answer["stripe_user_id"])
        grant = parse_grant(answer, received_at=ago, access_seconds=lifetime)
        yield {
            "ref": ref, "end_user_id": person, "app_key": app, "provider": app, "kind": "stripe_oauth2",
            "account_id": account, "account_name": account, "account_type": "standard",
            "mode": "live" if answer.get("livemode") else "test", "account_facts": {}, "scopes": list(grant.scopes),
            "host_metadata": {}, "grant_sealed": vault.seal(grant.to_json(), grant_binding(ref, 1)),
            "grant_expires_at": grant.expires_at, "token_version": 1, "import_state": ImportState.IMPORTED,
            "imported_at": ago, "connected_at": ago, "created_at": ago, "updated_at": ago,
        }  # fmt: skip


def plant_refreshes(
    world: World, keys: Sequence[int], *, due_in: timedelta = timedelta(0), apart: timedelta = timedelta(0)
) -> None:
    """Add a refresh for each of these connections: the first is due in so long, each further one so much later."""
    now = datetime.now(UTC)
    job = {
        "kind": "refresh", "state": JobState.WAITING, "fence": 0, "generation": 0, "failures": 0, "created_at": now,
        "updated_at": now,
    }  # fmt: skip
    rows = [job | {"subject_id": key, "due_at": now + due_in + number * apart} for number, key in enumerate(keys)]
    with world.database() as connection:
        connection.execute(sa.insert(table(Job)), rows)
