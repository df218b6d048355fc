"""Whole connect flows: start, provider, callback, committed, imported and read back; and the same by a bare script.

Web and worker run as `broker web` and `broker worker` do, the sandbox and the visitors in processes of their own.

Run as a program this is the bare script: `python -m benchmarks.connect_flows FLOWS`, the rest from the environment.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import requests
import sqlalchemy as sa

from benchmarks.framework import Benchmark, Report, Setting, family_cpu_seconds, family_memory
from benchmarks.import_backlog import NOTED, NOW, Run, driver
from benchmarks.planting import plant_links
from benchmarks.visitors import Visit, visit
from tests.e2e.world import ROOT, World

AT_ONCE = 8
WORKER_THREADS = 4
WEB_THREADS = 16
WARM_UP = 50
MOST_BY_SCRIPT = 1_000
"""Codes live for some minutes, and the script gets all of its codes first."""
LOOK_SECONDS = 0.2
STALLED_SECONDS = 60.0
PATIENCE_SECONDS = 1800.0


def run(setting: Setting) -> Report:
    """Connect on each database: by the bare script, and through the broker."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        setting.say(f"{kind}: bare script …")
        with setting.world(kind) as world:
            floor, rate = _by_script(world, min(setting.size, MOST_BY_SCRIPT))
        rows.append([kind, "bare script", rate, *[None] * 6, floor, 1.0, None, 0])
        setting.say(f"{kind}: broker …")
        with setting.world(kind, BROKER_LIMITS="off") as world:
            rows.append([kind, "broker", *_by_broker(world, setting.size, floor)])
    return Report(
        (
            "database", "by", "flows/s", "start p50", "p95", "p99", "callback p50", "p95", "p99", "CPU ms each",
            "× floor", "MB web+worker", "errors",
        ),
        rows,
        (
            "flows/s: from the first start until the last connection was imported and read back.",
            "p50, p95, p99: milliseconds, as a visitor sees them; the callback's hold two answers of the provider.",
            "CPU ms each: user and system, of web and worker; without sandbox, visitors and PostgreSQL.",
            f"{AT_ONCE} visitors at once, who start the next flow as soon as the last one is saved.",
        ),
    )  # fmt: skip


BENCHMARK = Benchmark("connect-flows", "Whole connect flows", "flows", 3_000, run)


# --- through the broker ---------------------------------------------------------------------------------


def _by_broker(world: World, size: int, floor: float) -> list[object]:
    start_broker(world)
    # Codes in one place come first: pools, plans and templates are warm then.
    visit(Visit(world.url, plant_links(world, WARM_UP), at_once=AT_ONCE))
    settled(world, WARM_UP)
    links = plant_links(world, size)
    pids = [world.processes[name].pid for name in ("web", "worker")]
    before, began = sum(map(family_cpu_seconds, pids)), time.monotonic()
    met = visit(Visit(world.url, links, at_once=AT_ONCE))
    done = settled(world, WARM_UP + size)
    took, used = time.monotonic() - began, sum(map(family_cpu_seconds, pids)) - before
    credentials = len(world.credentials())
    errors = len(met.failures) + (WARM_UP + size - done) + abs(WARM_UP + size - credentials)
    for failure in met.failures[:5]:
        print(f"  {failure}", file=sys.stderr)
    latencies = [met.percentile(share, part) for part in ("start", "callback") for share in (0.5, 0.95, 0.99)]
    cost = 1000 * used / size
    return [size / took, *latencies, cost, cost / floor, family_memory(pids[0]) + family_memory(pids[1]), errors]


def start_broker(world: World, *, processes: int = 1) -> None:
    """Start web and worker as a deployment on one machine does, and let everything be allowed at the provider."""
    world.control("consent", auto="allow")
    world.start(
        "web", "web", "--bind", f"127.0.0.1:{world.port}", "--processes", str(processes),
        "--threads", str(WEB_THREADS), BROKER_WORKERS="0",
    )  # fmt: skip
    world.answers()
    world.start_worker(threads=WORKER_THREADS)


def settled(world: World, count: int, *, app: str = "stripe") -> int:
    """Wait until so many connections of an app were read back from Sequin, or nothing goes on; return how many were."""
    query = sa.text("SELECT count(*) FROM connections WHERE verified_at IS NOT NULL AND app_key = :app")
    query = query.bindparams(app=app)
    # Not as the world opens it: looking must not take the embedded database's write lock.
    engine = sa.create_engine(world.database_url)
    seen, since = -1, time.monotonic()
    try:
        while True:
            with engine.connect() as connection:
                found = int(connection.execute(query).scalar_one())
            if found >= count or time.monotonic() - since > STALLED_SECONDS:
                return found
            if found > seen:
                seen, since = found, time.monotonic()
            time.sleep(LOOK_SECONDS)
    finally:
        engine.dispose()


# --- by a bare script -----------------------------------------------------------------------------------


def _by_script(world: World, size: int) -> tuple[float, float]:
    """Return the CPU milliseconds of each flow, and flows in a second."""
    world.control("consent", auto="allow")
    script = subprocess.run(
        [sys.executable, "-m", "benchmarks.connect_flows", str(size)],
        env=world.environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    told = json.loads(script.stdout)
    if len(world.credentials()) != size:
        raise SystemExit("The bare script has lost an import.")
    return 1000 * told["cpu_seconds"] / size, size / told["seconds"]


def bare(size: int) -> None:
    """Do with drivers and requests alone what a flow sends and commits, and print the CPU time it took."""
    connect = driver(os.environ["DATABASE_URL"])
    ((person,),) = connect()((PERSON, (NOW,)), ("SELECT max(id) FROM end_users", ()))
    ((link,),) = connect()((LINK, (person, NOW, NOW)), ("SELECT max(id) FROM links", ()))
    codes = enumerate([_code() for _ in range(size)])
    lock = threading.Lock()
    threads = [
        threading.Thread(target=_connect_all, args=(codes, lock, connect(), person, link)) for _ in range(AT_ONCE)
    ]
    before, began = time.process_time(), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"cpu_seconds": time.process_time() - before, "seconds": time.monotonic() - began}))


def _code() -> str:
    """Let the provider give a code, as a person's browser would."""
    connect = urlsplit(os.environ["STRIPE_CONNECT_URL"])
    asked = {
        "response_type": "code", "client_id": os.environ["STRIPE_CLIENT_ID"], "scope": "read_write", "state": "bare",
        "redirect_uri": f"{os.environ['BROKER_PUBLIC_URL']}/oauth/stripe/callback",
    }  # fmt: skip
    browser = HTTPConnection(connect.netloc, timeout=60)
    browser.request("GET", f"{connect.path}/oauth/authorize?{urlencode(asked)}")
    leads_to = browser.getresponse().headers["Location"]
    browser.close()
    return parse_qs(urlsplit(leads_to).query)["code"][0]


def _connect_all(codes: Iterator[tuple[int, str]], lock: threading.Lock, database: Run, person: int, link: int) -> None:
    web, sequin = requests.Session(), requests.Session()
    web.trust_env = sequin.trust_env = False
    secret = os.environ["STRIPE_CLIENT_SECRET"]
    sequin.headers["Authorization"] = f"Bearer {os.environ['SEQUIN_API_TOKEN']}"
    listed = sequin.get(f"{os.environ['SEQUIN_API_URL']}/v1/oauth-apps").json()["data"]
    oauth_app = next(one["id"] for one in listed if one["provider"] == "stripe")
    while True:
        with lock:
            taken = list(itertools.islice(codes, 1))
        if not taken:
            return
        ((number, code),) = taken
        _leave(database, number, person, link)
        account, token = _come_back(web, database, number, code, secret)
        key = _attach(database, number, person, account, token)
        _hand_over(sequin, oauth_app, database, number, key, account, token)


def _leave(database: Run, number: int, person: int, link: int) -> None:
    database(
        ("UPDATE links SET browser_hash = ? WHERE id = ?", ("bare", link)),
        (FLOW, (f"flow-{number}", link, person, NOW, NOW, NOW)),
        (HOP, (f"state-{number}", NOW, NOW, f"flow-{number}")),
    )


def _come_back(
    web: requests.Session, database: Run, number: int, code: str, secret: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    database(
        ("UPDATE hops SET consumed_at = ? WHERE state_hash = ? AND consumed_at IS NULL", (NOW, f"state-{number}")),
        ("UPDATE flows SET state = 'redeeming' WHERE ref = ?", (f"flow-{number}",)),
    )
    token = web.post(
        f"{os.environ['STRIPE_CONNECT_URL']}/oauth/token",
        data={"grant_type": "authorization_code", "code": code}, auth=(secret, ""),
    ).json()  # fmt: skip
    kept = base64.b64encode(json.dumps(token).encode())
    database(
        ("UPDATE flows SET grant_sealed = ? WHERE ref = ?", (kept, f"flow-{number}")),
        (JOB, ("finish", -number - 1, NOW, NOW, NOW)),
    )
    proof = {"Authorization": f"Bearer {token['access_token']}"}
    account: dict[str, Any] = web.get(f"{os.environ['STRIPE_API_URL']}/v1/account", headers=proof).json()
    return account, token


def _attach(database: Run, number: int, person: int, account: dict[str, Any], token: dict[str, Any]) -> int:
    kept = base64.b64encode(json.dumps(token).encode())
    ((key,),) = database(
        ("UPDATE flows SET state = 'done', grant_sealed = NULL WHERE ref = ?", (f"flow-{number}",)),
        (CLAIM, (account["id"], person)),
        (CONNECTION, (f"ref-{number}", person, account["id"], account["id"], kept, NOW, NOW, NOW)),
        ("UPDATE jobs SET state = 'done' WHERE kind = 'finish' AND subject_id = ?", (-number - 1,)),
        (JOB, ("import", number, NOW, NOW, NOW)),
        (NOTED, (NOW, f"ref-{number}")),
        ("SELECT id FROM connections WHERE ref = ?", (f"ref-{number}",)),
    )
    return int(key)


def _hand_over(
    sequin: requests.Session, oauth_app: str, database: Run, number: int, key: int, account: dict[str, Any],
    token: dict[str, Any],
) -> None:  # fmt: skip
    leased = "UPDATE jobs SET state = 'running', fence = fence + 1 WHERE kind = ? AND subject_id = ?"
    done = "UPDATE jobs SET state = 'done' WHERE kind = ? AND subject_id = ? AND state = 'running'"
    database((leased, ("import", number)))
    address = f"{os.environ['SEQUIN_API_URL']}/v1/credentials"
    properties = {"kind": "stripe_oauth2", "secret": token["access_token"], "test": True, "name": account["id"]}
    credential = sequin.post(
        address,
        json={
            "properties": properties | {"stripe_user_id": account["id"]}, "oauth_app_id": oauth_app,
            "name": account["id"], "metadata": {"broker_connection_id": f"ref-{number}"},
        },
    ).json()["id"]  # fmt: skip
    imported = "UPDATE connections SET import_state = 'imported', credential_id = ?, imported_at = ? WHERE id = ?"
    database(
        (done, ("import", number)),
        (imported, (credential, NOW, key)),
        (JOB, ("verify", number, NOW, NOW, NOW)),
        (NOTED, (NOW, f"ref-{number}")),
    )
    database((leased, ("verify", number)))
    assert sequin.get(f"{address}/{credential}").json()["id"] == credential
    database(
        (done, ("verify", number)),
        ("UPDATE connections SET verified_at = ?, grant_sealed = NULL WHERE id = ?", (NOW, key)),
        (NOTED, (NOW, f"ref-{number}")),
    )


PERSON = "INSERT INTO end_users (external_id, created_at) VALUES ('bare', ?)"
LINK = (
    "INSERT INTO links (public_id, token_hash, end_user_id, host_metadata, manage, created_by, created_at, expires_at) "
    "VALUES ('lnk_bare', 'bare', ?, '{}', false, 'cli', ?, ?)"
)
FLOW = (
    "INSERT INTO flows (ref, link_id, end_user_id, app_key, browser_hash, state, created_at, updated_at, expires_at) "
    "VALUES (?, ?, ?, 'stripe', 'bare', 'left', ?, ?, ?)"
)
HOP = (
    "INSERT INTO hops (flow_id, kind, state_hash, created_at, expires_at) "
    "SELECT id, 'authorize', ?, ?, ? FROM flows WHERE ref = ?"
)
JOB = (
    "INSERT INTO jobs (kind, subject_id, state, due_at, fence, generation, failures, created_at, updated_at) "
    "VALUES (?, ?, 'waiting', ?, 0, 0, 0, ?, ?)"
)
CLAIM = "INSERT INTO claims (app_key, account_id, mode, end_user_id) VALUES ('stripe', ?, 'test', ?)"
CONNECTION = (
    "INSERT INTO connections (ref, end_user_id, app_key, provider, kind, account_id, account_name, account_type, mode, "
    "account_facts, scopes, host_metadata, grant_sealed, token_version, import_state, connected_at, created_at, "
    "updated_at) VALUES (?, ?, 'stripe', 'stripe', 'stripe_oauth2', ?, ?, 'standard', 'test', '{}', '[]', '{}', ?, 1, "
    "'pending', ?, ?, ?)"
)

if __name__ == "__main__":
    bare(int(sys.argv[1]))
