"""Tokens that end: how many are refreshed and imported again in a second, and what each costs.

The connections are made through the sandbox's own token endpoint; all their tokens are due at once. A worker refreshes
each, keeps the rotated token, and imports it again. It ends when Sequin has every new token.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import sqlalchemy as sa

from benchmarks.framework import Benchmark, Report, Setting, family_cpu_seconds
from broker.attach import grant_binding
from broker.db import table
from broker.models import Claim, ConnectedAccount, EndUser, ImportState, Job, JobState
from broker.oauth import parse_grant
from broker.references import new_id, new_ref
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.e2e.world import World

APP = "stripe_app"
THREADS = 4
WORKERS = (1, 2)
AT_ONCE = 4
LIFETIME = 3600
LOOK_SECONDS = 0.5
STALLED_SECONDS = 120.0


def run(setting: Setting) -> Report:
    """Refresh everything on each database, by one worker and by two."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        for workers in WORKERS:
            setting.say(f"{kind}: {workers} × {THREADS} threads …")
            with setting.world(kind, STRIPE_APP_ACCESS_SECONDS=str(LIFETIME)) as world:
                rows.append([kind, f"{workers} worker{'s' * (workers > 1)}", *_sweep(world, workers, setting.size)])
    return Report(
        ("database", "by", "refreshed/s", "imported again/s", "CPU ms each", "not refreshed"),
        rows,
        (
            "refreshed/s: until the last rotated token was kept; imported again/s: until Sequin had every new token.",
            "CPU ms each: of the workers, for a refresh and its import; without sandbox and PostgreSQL.",
            "A process refreshes one token of an app at a time: what one takes at the provider bounds its rate.",
        ),
    )


def _sweep(world: World, workers: int, size: int) -> list[object]:
    world.control("consent", auto="allow")
    world.control("tokens", lifetime=float(LIFETIME))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: _answer(world), range(size)))
    _plant(world, answers)
    engine = sa.create_engine(world.database_url)
    names = [f"worker-{number}" for number in range(workers)]
    for name in names:
        world.start_worker(name, threads=THREADS)
    # Only now: what starts the workers is not what is measured.
    with world.database() as connection:
        jobs = table(Job)
        connection.execute(sa.update(jobs).where(jobs.c.kind == "refresh").values(due_at=datetime.now(UTC)))
    used, began = -_used(world, names), time.monotonic()
    refreshed_in = done_in = 0.0
    done = refreshed = -1
    try:
        while done < size and time.monotonic() - began - max(refreshed_in, done_in) < STALLED_SECONDS:
            time.sleep(LOOK_SECONDS)
            with engine.connect() as connection:
                now_refreshed, now_done = connection.execute(sa.text(PROGRESS)).one()
            if now_refreshed > refreshed:
                refreshed, refreshed_in = now_refreshed, time.monotonic() - began
            if now_done > done:
                done, done_in = now_done, time.monotonic() - began
    finally:
        engine.dispose()
    used += _used(world, names)
    return [refreshed / refreshed_in, done / done_in, 1000 * used / size, size - done]


def _used(world: World, names: list[str]) -> float:
    return sum(family_cpu_seconds(world.processes[name].pid) for name in names)


PROGRESS = (
    "SELECT coalesce(sum(CASE WHEN token_version > 1 THEN 1 ELSE 0 END), 0), coalesce(sum(CASE WHEN token_version > 1 "
    "AND import_state = 'imported' AND imported_at > connected_at THEN 1 ELSE 0 END), 0) FROM connections"
)


def _answer(world: World) -> dict[str, Any]:
    """Let the sandbox give a token for an account of its own, as to a person who has allowed it."""
    environment = world.environment
    sent = {
        "response_type": "code", "client_id": environment["STRIPE_APP_CLIENT_ID"], "state": "bench",
        "redirect_uri": f"{world.url}/oauth/{APP}/callback",
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


def _plant(world: World, answers: list[dict[str, Any]]) -> None:
    """Add connections that were imported an hour ago, each with a refresh that is due."""
    kid, _, key = world.environment["BROKER_ENCRYPTION_KEYS"].partition(":")
    vault = Vault((EncryptionKey(kid, base64.b64decode(key)),))
    with world.database() as connection:
        rows = list(_rows(connection, vault, answers))
        connection.execute(
            sa.insert(table(Claim)),
            [{name: row[name] for name in ("app_key", "account_id", "mode", "end_user_id")} for row in rows],
        )
        keys = connection.execute(
            sa.insert(table(ConnectedAccount)).returning(table(ConnectedAccount).c.id, sort_by_parameter_order=True),
            rows,
        ).scalars()
        now = datetime.now(UTC)
        job = {
            "kind": "refresh", "state": JobState.WAITING, "due_at": now + timedelta(days=1), "fence": 0,
            "generation": 0, "failures": 0, "created_at": now, "updated_at": now,
        }  # fmt: skip
        connection.execute(sa.insert(table(Job)), [job | {"subject_id": each} for each in keys])


def _rows(connection: sa.Connection, vault: Vault, answers: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    ago = datetime.now(UTC) - timedelta(seconds=LIFETIME)
    people = connection.execute(
        sa.insert(table(EndUser)).returning(table(EndUser).c.id, sort_by_parameter_order=True),
        [{"external_id": new_id("usr"), "created_at": ago} for _ in answers],
    ).scalars()
    for answer, person in zip(answers, people, strict=True):
        ref, account = new_ref(), str(answer["stripe_user_id"])
        grant = parse_grant(answer, received_at=ago, access_seconds=LIFETIME)
        yield {
            "ref": ref, "end_user_id": person, "app_key": APP, "provider": APP, "kind": "stripe_oauth2",
            "account_id": account, "account_name": account, "account_type": "standard",
            "mode": "live" if answer.get("livemode") else "test", "account_facts": {}, "scopes": list(grant.scopes),
            "host_metadata": {}, "grant_sealed": vault.seal(grant.to_json(), grant_binding(ref, 1)),
            "grant_expires_at": grant.expires_at, "token_version": 1, "import_state": ImportState.IMPORTED,
            "imported_at": ago, "connected_at": ago, "created_at": ago, "updated_at": ago,
        }  # fmt: skip


BENCHMARK = Benchmark("refresh-sweep", "Refreshing tokens and importing them again", "tokens", 1_000, run)
