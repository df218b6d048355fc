"""The checker of the hand-off: a program of its own that compares what four witnesses say and reports contradictions.

    python -m tests.e2e.handoff_checker --sandbox URL --database URL --clients FILE

The witnesses are the sandbox's request log, the sandbox's state, what people's browsers were shown (one JSON object
per line, see `Exchange`), and the database, read with plain SQL. Nothing of the broker is used but the opening of a
sealed grant, in `opener`; every rule is written down here a second time, on purpose.

It judges a world at rest (nothing under way, no outage, no drift planted) and only the people in the browsers' log.
It prints one violation per line and exits with 1 when there is any.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import sqlalchemy as sa

Row = dict[str, Any]
Opener = Callable[[bytes, str, str, str, int], bytes]
"""Opens a sealed value, given table, column, owner and version; raises whatever it likes when it cannot."""

IMPORT_PATH = "/sequin/v1/credentials"
TOKEN_PATHS = ("/stripe/oauth/token", "/github/login/oauth/access_token")
UNDER_WAY = ("opened", "redeeming")
ENDED = ("done", "failed", "expired", "interrupted")
OF_FLOWS = ("finish", "discard")
OF_CONNECTIONS = ("import", "verify", "refresh", "probe", "revoke", "remove")
NEVER_AT_REST = ("finish", "discard", "import", "revoke", "remove")
TABLES = {
    "people": "SELECT id, external_id FROM end_users",
    "flows": "SELECT id, ref, end_user_id, state, grant_sealed, connection_id, ended_at FROM flows",
    "verifiers": "SELECT flow_id FROM hops WHERE verifier_sealed IS NOT NULL",
    "connections": "SELECT * FROM connections",
    "jobs": "SELECT kind, subject_id, state, error FROM jobs",
    "claims": "SELECT app_key, account_id, mode, end_user_id FROM claims",
}


@dataclass(frozen=True)
class Violation:
    """One broken promise: a stable code, what it is about, and what contradicts what."""

    code: str
    about: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.code}  {self.about}  {self.sentence}"


@dataclass(frozen=True)
class Exchange:
    """One request of a browser and its answer, as the browser noted them.

    `status` is 0 when the connection broke, `shows` has the page's heading and notices.
    """

    person: str
    method: str
    url: str
    status: int
    location: str = ""
    shows: tuple[str, ...] = ()

    @property
    def flow_shown(self) -> str | None:
        """The reference of the flow whose page this is."""
        return _flow_in(self.url) if self.status < 300 or self.status >= 400 else None

    def says(self, words: str) -> bool:
        """Tell whether the page's heading or a notice on it says this."""
        return any(words in each for each in self.shows)

    @property
    def code(self) -> str | None:
        """The authorization code that this request carried to the broker."""
        parts = urlsplit(self.url)
        is_callback = parts.path.startswith("/oauth/") and parts.path.endswith("/callback")
        return next(iter(parse_qs(parts.query).get("code", [])), None) if is_callback else None


@dataclass(frozen=True)
class Evidence:
    """What the four witnesses say."""

    log: list[Row]
    state: Mapping[str, list[Row]]
    clients: list[Exchange]
    tables: Mapping[str, list[Row]]
    open: Opener = field(repr=False)

    @cached_property
    def people(self) -> dict[int, str]:
        """The people to be judged: keys of the database and the host's ids."""
        named = {each.person for each in self.clients}
        return {row["id"]: row["external_id"] for row in self.tables["people"] if row["external_id"] in named}

    @cached_property
    def flows(self) -> dict[str, Row]:
        """Their flows, by reference."""
        return {row["ref"]: row for row in self.tables["flows"] if row["end_user_id"] in self.people}

    @cached_property
    def connections(self) -> dict[int, Row]:
        """Their connections, by key."""
        return {row["id"]: row for row in self.tables["connections"] if row["end_user_id"] in self.people}

    @cached_property
    def live(self) -> list[Row]:
        """Their connections that have not been ended."""
        return [row for row in self.connections.values() if row["disconnected_at"] is None]

    @cached_property
    def credentials(self) -> dict[str, Row]:
        """What Sequin holds, by id."""
        return {each["id"]: each for each in self.state["credentials"]}

    def requests(self, method: str, path: str) -> list[Row]:
        """Return what was asked of the stand-ins, in order."""
        return [entry for entry in self.log if entry["method"] == method and re.fullmatch(path, entry["path"])]

    def connection_of(self, flow_ref: str) -> Row | None:
        """Return the connection that a flow led to."""
        flow = self.flows.get(flow_ref)
        return self.connections.get(flow["connection_id"]) if flow else None


# --- the promises ---------------------------------------------------------------------------------------


def lost(evidence: Evidence) -> Iterator[Violation]:
    """I-1: what a browser was told is connected is connected, and has arrived in Sequin."""
    for each in evidence.clients:
        if each.flow_shown and each.says(" is connected"):
            yield from _arrived(evidence, each)
    redeemed = {code for code, entry in _exchanges(evidence) if _good([entry])}
    first = {each.code: each for each in reversed(evidence.clients) if each.code in redeemed}
    for each in first.values():
        # The redirect that follows a good exchange acknowledges it, whether or not its page was ever seen. A reload
        # after a broken connection acknowledges nothing.
        flow = evidence.flows.get(_flow_in(each.location) or "")
        if each.status == 303 and flow and flow["state"] == "interrupted":
            yield Violation("lost", flow["ref"], "the browser was led on after its exchange, and it is interrupted")


def _arrived(evidence: Evidence, told: Exchange) -> Iterator[Violation]:
    row = evidence.connection_of(told.flow_shown or "")
    if row is None:
        yield Violation("lost", told.person, "was told that the account is connected, and no connection exists")
    elif row["disconnected_at"] is None and row["import_state"] != "imported":
        yield Violation("lost", row["ref"], f"was acknowledged and is {row['import_state']} instead of imported")
    elif row["disconnected_at"] is None and row["credential_id"] not in evidence.credentials:
        yield Violation("lost", row["ref"], "was acknowledged and Sequin does not hold its credential")


def doubled(evidence: Evidence) -> Iterator[Violation]:
    """I-3 and I-4: one connection for one account, and one credential for one connection."""
    held = evidence.credentials.values()
    for what, count in Counter(str(each["metadata"].get("broker_connection_id")) for each in held).items():
        if count > 1:
            yield Violation("doubled", what, f"Sequin holds {count} credentials for this connection")
    for account, count in Counter(_account(each["kind"], each["properties"]) for each in held).items():
        if count > 1:
            yield Violation("doubled", " ".join(account), f"Sequin holds {count} credentials for this account")
    for credential_id, count in Counter(row["credential_id"] for row in evidence.live).items():
        if credential_id is not None and count > 1:
            yield Violation("doubled", credential_id, f"{count} connections stand on this credential")
    refs = {row["ref"] for row in evidence.live}
    every = {row["ref"]: row["end_user_id"] for row in evidence.tables["connections"]}
    for each in held:
        ref = each["metadata"].get("broker_connection_id")
        if ref is None or ref in refs or every.get(ref, 0) not in {0, *evidence.people}:
            continue
        yield Violation("unowned", each["id"], f"Sequin holds a credential for {ref}, which is no living connection")


def exchanged_twice(evidence: Evidence) -> Iterator[Violation]:
    """I-2: a code is sent at most once, whatever happened to the answer."""
    for code, count in Counter(code for code, _ in _exchanges(evidence)).items():
        if count > 1:
            yield Violation("exchanged_twice", f"{code[:6]}…", f"this code was sent {count} times")


def stuck(evidence: Evidence) -> Iterator[Violation]:
    """I-5: at rest nothing is on its way any more; what cannot go on says so."""
    for flow in evidence.flows.values():
        if flow["state"] in UNDER_WAY:
            yield Violation("stuck", flow["ref"], f"the flow is still {flow['state']}")
    for row in evidence.connections.values():
        ended = row["disconnected_at"] is not None
        doing = [name for name in ("revocation", "removal") if ended and row[name] == "pending"]
        doing += ["import_state"] if not ended and row["import_state"] == "pending" else []
        for name in doing:
            yield Violation("stuck", row["ref"], f"{name} is still pending")
    flows, connections = {flow["id"] for flow in evidence.flows.values()}, set(evidence.connections)
    for job in evidence.tables["jobs"]:
        waits = job["state"] == "running" or (job["state"] == "waiting" and job["kind"] in NEVER_AT_REST)
        is_theirs = (job["kind"] in OF_FLOWS and job["subject_id"] in flows) or (
            job["kind"] in OF_CONNECTIONS and job["subject_id"] in connections
        )
        if waits and is_theirs:
            yield Violation("stuck", f"{job['kind']} {job['subject_id']}", f"the job is {job['state']}: {job['error']}")


def older_token(evidence: Evidence) -> Iterator[Violation]:
    """I-4: Sequin never gets an older token after a newer one, and ends with the latest that was connected."""
    ages = {grant["access_token"]: age for age, grant in enumerate(_by_time(evidence.state["grants"], "created_at"))}
    newest: dict[tuple[str, ...], int] = {}
    for entry in _good(evidence.requests("POST", IMPORT_PATH)):
        properties = json.loads(entry["body"])["properties"]
        age = ages.get(properties.get("secret"))
        if age is None:
            continue
        account = _account(properties["kind"], properties)
        if age < newest.get(account, age):
            yield Violation("older_token", " ".join(account), "an older token was imported after a newer one")
        newest[account] = max(age, newest.get(account, age))
    latest = _latest_tokens(evidence)
    for row in evidence.live:
        credential = evidence.credentials.get(row["credential_id"], {"properties": {}})
        held, expected = credential["properties"].get("secret"), latest.get(row["id"])
        if held is not None and expected is not None and held != expected:
            yield Violation("older_token", row["ref"], "Sequin does not hold the token of the last connected flow")


def erased_unverified(evidence: Evidence) -> Iterator[Violation]:
    """A grant is erased only when its import was seen in Sequin; what has ended keeps none."""
    reads = _good(evidence.requests("GET", f"{IMPORT_PATH}/[^/]+"))
    imports = _good(evidence.requests("POST", IMPORT_PATH))
    for row in evidence.live:
        if row["grant_sealed"] is not None:
            continue
        imported = [entry["n"] for entry in imports if _answered_id(entry) == row["credential_id"]]
        seen = [entry["n"] for entry in reads if entry["path"].endswith(f"/{row['credential_id']}")]
        if row["verified_at"] is None or not imported or not seen or seen[-1] < imported[0]:
            yield Violation("erased_unverified", row["ref"], "the grant is gone and its import was never verified")
    for flow in evidence.flows.values():
        if flow["state"] in ENDED and flow["grant_sealed"] is not None:
            yield Violation("kept", flow["ref"], "the flow has ended and still holds a grant")
    ended = {flow["id"]: flow["ref"] for flow in evidence.flows.values() if flow["state"] in ENDED}
    for hop in evidence.tables["verifiers"]:
        if hop["flow_id"] in ended:
            yield Violation("kept", ended[hop["flow_id"]], "the flow has ended and still holds a verifier")


def unreadable(evidence: Evidence) -> Iterator[Violation]:
    """Every grant that is kept opens, and what Sequin holds is what was sealed."""
    for row in evidence.connections.values():
        if row["grant_sealed"] is None:
            continue
        try:
            opened = evidence.open(row["grant_sealed"], "connections", "grant", row["ref"], row["token_version"])
            token = json.loads(opened)["access_token"]
        except Exception as failure:  # noqa: BLE001 - whatever the reason, the grant is lost
            yield Violation("unreadable", row["ref"], f"its grant does not open: {type(failure).__name__}")
            continue
        credential = evidence.credentials.get(row["credential_id"], {"properties": {}})
        held = credential["properties"].get("secret")
        if row["disconnected_at"] is None and row["import_state"] == "imported" and held not in (None, token):
            yield Violation("older_token", row["ref"], "Sequin holds another token than the one sealed")
    for flow in evidence.flows.values():
        if flow["grant_sealed"] is not None:
            try:
                evidence.open(flow["grant_sealed"], "flows", "grant", flow["ref"], 0)
            except Exception as failure:  # noqa: BLE001 - as above
                yield Violation("unreadable", flow["ref"], f"its grant does not open: {type(failure).__name__}")


def mismatched(evidence: Evidence) -> Iterator[Violation]:
    """What Sequin holds is this connection's: its metadata, its account, its kind, its OAuth app."""
    for row in evidence.live:
        credential = evidence.credentials.get(row["credential_id"])
        if credential is None:
            continue
        ours = {"broker_connection_id": row["ref"], "end_user_id": evidence.people[row["end_user_id"]]}
        if credential["metadata"] != _json(row["host_metadata"]) | ours:
            yield Violation("metadata", row["ref"], f"Sequin has the metadata {credential['metadata']}")
        for name, value in _expected(row).items():
            found = credential["properties"].get(name, credential.get(name))
            if found != value:
                yield Violation("mismatch", row["ref"], f"{name} is {found!r} in Sequin and {value!r} here")


def dishonest(evidence: Evidence) -> Iterator[Violation]:
    """I-5 and I-10: no "imported" without Sequin's 2xx, no "disconnected" while Sequin or the provider still has it."""
    imported = {_answered_id(entry) for entry in _good(evidence.requests("POST", IMPORT_PATH))}
    for row in evidence.live:
        if row["imported_at"] is not None and row["credential_id"] not in imported:
            yield Violation("dishonest", row["ref"], "says imported, and Sequin never said so")
    active = {grant["account"] for grant in evidence.state["grants"] if grant["status"] == "active"}
    claims = {(row["app_key"], row["account_id"], row["mode"]): row["end_user_id"] for row in evidence.tables["claims"]}
    for row in evidence.connections.values():
        claim = (row["app_key"], row["account_id"], row["mode"])
        if row["disconnected_at"] is None and claims.get(claim) != row["end_user_id"]:
            yield Violation("unclaimed", row["ref"], "a living connection does not hold the claim on its account")
        if row["disconnected_at"] is not None and row["revocation"] == "done" and row["account_id"] in active:
            yield Violation("dishonest", row["ref"], "says revoked, and a token still works at the provider")
    for each in evidence.clients:
        if each.says(" is disconnected"):
            living = [row for row in evidence.live if row["ref"] == _connection_in(each.url)]
            since = {flow["connection_id"] for flow in _since(evidence, each)}
            for row in living:
                if row["id"] not in since:
                    yield Violation("resurrected", row["ref"], "a browser was told that it ended, and it lives")


PROMISES = (
    lost, doubled, exchanged_twice, stuck, older_token, erased_unverified, unreadable, mismatched, dishonest,
)  # fmt: skip


def violations(evidence: Evidence) -> list[Violation]:
    """Return every contradiction, each once."""
    return list(dict.fromkeys(found for promise in PROMISES for found in promise(evidence)))


# --- reading what they say ------------------------------------------------------------------------------


def _exchanges(evidence: Evidence) -> list[tuple[str, Row]]:
    """Return every token request for a code, in order, whatever was answered."""
    asked = [(parse_qs(entry["body"]).get("code", [""])[0], entry) for entry in evidence.log
             if entry["method"] == "POST" and entry["path"] in TOKEN_PATHS]  # fmt: skip
    return [(code, entry) for code, entry in asked if code]


def _latest_tokens(evidence: Evidence) -> dict[int, str | None]:
    """Return, by connection, the token that its last flow led to: code and flow are tied by the browsers' log."""
    codes = {_flow_in(each.location): each.code for each in evidence.clients if each.code and each.status == 303}
    given = {code: json.loads(entry["response"]) for code, entry in _exchanges(evidence) if _good([entry])}
    renewed = {}
    for entry in _good(entry for entry in evidence.log if entry["path"] in TOKEN_PATHS):
        if spent := parse_qs(entry["body"]).get("refresh_token"):
            renewed[spent[0]] = json.loads(entry["response"])
    tokens = {}
    for flow in _by_time((flow for flow in evidence.flows.values() if flow["state"] == "done"), "ended_at"):
        # A last flow whose token nobody can name says nothing; it must not leave an older one standing.
        answer = given.get(codes.get(flow["ref"]) or "", {})
        while (refresh_token := answer.get("refresh_token")) in renewed:
            answer = renewed.pop(refresh_token)
        tokens[flow["connection_id"]] = answer.get("access_token")
    return tokens


def _since(evidence: Evidence, exchange: Exchange) -> list[Row]:
    later = evidence.clients[evidence.clients.index(exchange) + 1 :]
    return [flow for each in later if (flow := evidence.flows.get(each.flow_shown or ""))]


def _good(entries: Iterable[Row]) -> list[Row]:
    """Return those that surely had their effect, whose answer was sent whole."""
    return [entry for entry in entries if entry["status"] in (200, 201) and not entry["fault"]]


def _answered_id(entry: Row) -> str | None:
    found = json.loads(entry["response"] or "{}").get("id")
    return str(found) if found is not None else None


def _account(kind: str, properties: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("stripe_user_id", "test", "installation_id")
    return (kind, *(str(properties[name]) for name in names if name in properties))


def _expected(row: Row) -> dict[str, object]:
    expected: dict[str, object] = {"kind": row["kind"], "oauth_app_id": row["sequin_oauth_app_id"]}
    if row["provider"] == "stripe":
        return expected | {"stripe_user_id": row["account_id"], "test": row["mode"] == "test"}
    facts = _json(row["account_facts"])
    return expected | {"installation_id": facts["installation_id"], "account_type": row["account_type"]}


def _by_time(rows: Iterable[Row], column: str) -> list[Row]:
    return sorted(rows, key=lambda row: str(row[column]))


def _json(value: object) -> dict[str, Any]:
    # SQLite hands JSON out as text, PostgreSQL's driver as what it means.
    found = json.loads(value) if isinstance(value, str) else value
    return dict(found) if isinstance(found, dict) else {}


def _flow_in(url: str) -> str | None:
    found = re.search(r"/flows/([0-9A-Za-z-]+)", urlsplit(url).path)
    return found[1] if found else None


def _connection_in(url: str) -> str | None:
    found = re.search(r"/connections/([0-9A-Za-z-]+)", urlsplit(url).path)
    return found[1] if found else None


# --- gathering ------------------------------------------------------------------------------------------


def gather(*, sandbox: str, database: str, clients: Path, keys: str) -> Evidence:
    """Ask all four witnesses; `keys` is the key ring as in BROKER_ENCRYPTION_KEYS."""
    with requests.Session() as session:
        session.trust_env = False
        log = session.get(f"{sandbox}/control/log", timeout=60).json()["data"]
        state = session.get(f"{sandbox}/control/state", timeout=60).json()
    engine = sa.create_engine(database, poolclass=sa.NullPool)
    try:
        with engine.connect() as connection:
            tables = {
                name: [dict(row) for row in connection.execute(sa.text(query)).mappings()]
                for name, query in TABLES.items()
            }
    finally:
        engine.dispose()
    noted = [json.loads(line) for line in clients.read_text().splitlines()]
    exchanges = [Exchange(**each | {"shows": tuple(each["shows"])}) for each in noted]
    return Evidence(log, state, exchanges, tables, opener(keys))


def opener(keys: str) -> Opener:
    """Return what opens sealed grants. The one place where this program uses the broker: its vault."""
    from broker.settings import EncryptionKey
    from broker.vault import Binding, Vault

    ring = [EncryptionKey(kid, b64decode(key)) for kid, _, key in (each.partition(":") for each in keys.split(","))]
    vault = Vault(ring)
    return lambda sealed, table, column, owner, version: vault.open(
        bytes(sealed), Binding(table, column, owner, version)
    )


def main() -> int:
    """Check the world that the arguments point at."""
    arguments = argparse.ArgumentParser(prog="handoff_checker", description="Compare what four witnesses say.")
    arguments.add_argument("--sandbox", required=True, help="address of the sandbox")
    arguments.add_argument("--database", required=True, help="SQLAlchemy address of the broker's database")
    arguments.add_argument("--clients", required=True, type=Path, help="what browsers noted, one JSON object per line")
    given = arguments.parse_args()
    evidence = gather(
        sandbox=given.sandbox, database=given.database, clients=given.clients,
        keys=os.environ["BROKER_ENCRYPTION_KEYS"],
    )  # fmt: skip
    found = violations(evidence)
    for each in found:
        print(each)
    print(
        f"{len(found)} violations; {len(evidence.people)} people, {len(evidence.clients)} exchanges, "
        f"{len(evidence.flows)} flows, {len(evidence.connections)} connections, "
        f"{len(evidence.credentials)} credentials",
        file=sys.stderr,
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
