"""The checker of the hand-off: a sound world passes, and every kind of broken promise planted in it is found."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e import handoff_checker
from tests.e2e.handoff_checker import IMPORT_PATH, Evidence, Exchange, gather, violations
from tests.e2e.test_disconnect import disconnect, ended
from tests.e2e.world import ROOT, Witness, World, eventually, forget_everything

Plant = Callable[[Evidence], None]


@pytest.fixture(scope="module")
def diary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients") / "clients.jsonl"


@pytest.fixture(scope="module")
def sound_world(running_world: World, diary: Path) -> World:
    """A world in which five people did what people do, and which has come to rest."""
    world = running_world
    diary.unlink(missing_ok=True)
    world.end_outage()
    world.settle()
    world.control("reset")
    with world.database() as connection:
        # The sandbox's accounts are the same again: nobody may have connected one before.
        forget_everything(connection)
    _connect(world, diary, "checker-ana", "stripe")
    _connect(world, diary, "checker-bob", "github", account="solo-sam")
    for _ in range(2):
        _connect(world, diary, "checker-carol", "stripe", account="acct_1Again")
        # Two imports, and not one of both tokens.
        eventually(lambda: world.connections("checker-carol")[0]["status"] == "ok")
    gone = _connect(world, diary, "checker-dora", "stripe")
    disconnect(gone, world.connections("checker-dora")[0]["ref"])
    ended(world, "checker-dora")
    # Nobody can look at Ed's credential, so that his grant is kept.
    world.fault("sequin.get", "status", status=422)
    _connect(world, diary, "checker-ed", "stripe", verified=False)
    return world


def _connect(
    world: World, diary: Path, name: str, app: str, *, account: str | None = None, verified: bool = True
) -> Witness:
    world.control("consent", auto="allow", account=account)
    person = Witness(world, name, diary)
    page = person.connect(world.link(name, metadata={"plan": "gold"}), app)
    assert " is connected" in page.text
    world.imported(name)
    if verified:
        world.verified(name)
    person.get(page.url)
    return person


@pytest.fixture(scope="module")
def evidence(sound_world: World, diary: Path) -> Evidence:
    return gather(
        sandbox=sound_world.sandbox_url,
        database=sound_world.database_url,
        clients=diary,
        keys=sound_world.environment["BROKER_ENCRYPTION_KEYS"],
    )


# --- what is planted ------------------------------------------------------------------------------------


def row_of(evidence: Evidence, name: str) -> dict[str, Any]:
    keys = [row["id"] for row in evidence.tables["people"] if row["external_id"] == name]
    return next(row for row in evidence.tables["connections"] if row["end_user_id"] in keys)


def credential_of(evidence: Evidence, name: str) -> dict[str, Any]:
    ref = row_of(evidence, name)["ref"]
    return next(one for one in evidence.state["credentials"] if one["metadata"]["broker_connection_id"] == ref)


def imports_of(evidence: Evidence, name: str) -> list[dict[str, Any]]:
    account = row_of(evidence, name)["account_id"]
    return [entry for entry in evidence.requests("POST", IMPORT_PATH) if account in entry["body"]]


def flow_of(evidence: Evidence, name: str) -> dict[str, Any]:
    key = row_of(evidence, name)["id"]
    return next(row for row in evidence.tables["flows"] if row["connection_id"] == key)


def job_of(evidence: Evidence, name: str, kind: str) -> dict[str, Any]:
    key = row_of(evidence, name)["id"]
    return next(job for job in evidence.tables["jobs"] if (job["kind"], job["subject_id"]) == (kind, key))


def no_connection(evidence: Evidence) -> None:
    evidence.tables["connections"].remove(row_of(evidence, "checker-ana"))


def no_credential(evidence: Evidence) -> None:
    evidence.state["credentials"].remove(credential_of(evidence, "checker-ana"))


def never_imported(evidence: Evidence) -> None:
    row_of(evidence, "checker-ana")["import_state"] = "parked"


def interrupted_after_its_redirect(evidence: Evidence) -> None:
    flow_of(evidence, "checker-ana")["state"] = "interrupted"


def another_credential(evidence: Evidence) -> None:
    evidence.state["credentials"].append(credential_of(evidence, "checker-ana") | {"id": "another"})


def one_account_twice(evidence: Evidence) -> None:
    twin = deepcopy(credential_of(evidence, "checker-ana"))
    twin["metadata"]["broker_connection_id"] = row_of(evidence, "checker-bob")["ref"]
    evidence.state["credentials"].append(twin)


def one_credential_for_two(evidence: Evidence) -> None:
    row_of(evidence, "checker-bob")["credential_id"] = row_of(evidence, "checker-ana")["credential_id"]


def what_was_ended_in_sequin(evidence: Evidence) -> None:
    credential_of(evidence, "checker-ana")["metadata"]["broker_connection_id"] = row_of(evidence, "checker-dora")["ref"]


def a_stranger_in_sequin(evidence: Evidence) -> None:
    credential_of(evidence, "checker-ana")["metadata"]["broker_connection_id"] = "nobody"


def code_sent_twice(evidence: Evidence) -> None:
    evidence.log.append(evidence.requests("POST", "/stripe/oauth/token")[0])


def code_sent_again_after_a_lost_answer(evidence: Evidence) -> None:
    first = evidence.requests("POST", "/github/login/oauth/access_token")[0]
    evidence.log.append(first | {"status": None, "fault": "reset"})


def flow_under_way(evidence: Evidence) -> None:
    flow_of(evidence, "checker-ana")["state"] = "redeeming"


def import_under_way(evidence: Evidence) -> None:
    row_of(evidence, "checker-ana")["import_state"] = "pending"


def removal_under_way(evidence: Evidence) -> None:
    row_of(evidence, "checker-dora")["removal"] = "pending"


def revocation_under_way(evidence: Evidence) -> None:
    row_of(evidence, "checker-dora")["revocation"] = "pending"


def job_running(evidence: Evidence) -> None:
    job_of(evidence, "checker-ana", "verify")["state"] = "running"


def job_waiting(evidence: Evidence) -> None:
    job_of(evidence, "checker-dora", "remove")["state"] = "waiting"


def discard_waiting(evidence: Evidence) -> None:
    flow = flow_of(evidence, "checker-ana")["id"]
    evidence.tables["jobs"].append({"kind": "discard", "subject_id": flow, "state": "waiting", "error": None})


def imports_in_the_wrong_order(evidence: Evidence) -> None:
    first, second = imports_of(evidence, "checker-carol")
    first["body"], second["body"] = second["body"], first["body"]


def token_of_before(evidence: Evidence) -> None:
    first, second = imports_of(evidence, "checker-carol")
    evidence.log.remove(second)
    secret = first["body"].partition('"secret":"')[2].partition('"')[0]
    credential_of(evidence, "checker-carol")["properties"]["secret"] = secret


def another_token_than_sealed(evidence: Evidence) -> None:
    credential_of(evidence, "checker-ed")["properties"]["secret"] = "sk_another"


def erased_before_it_was_verified(evidence: Evidence) -> None:
    row_of(evidence, "checker-ed")["grant_sealed"] = None


def verified_without_a_look(evidence: Evidence) -> None:
    for entry in evidence.requests("GET", f"{IMPORT_PATH}/{row_of(evidence, 'checker-ana')['credential_id']}"):
        evidence.log.remove(entry)


def grant_kept_by_its_flow(evidence: Evidence) -> None:
    flow_of(evidence, "checker-ana")["grant_sealed"] = b"sealed"


def verifier_kept(evidence: Evidence) -> None:
    evidence.tables["verifiers"].append({"flow_id": flow_of(evidence, "checker-bob")["id"]})


def sealed_for_another_row(evidence: Evidence) -> None:
    row_of(evidence, "checker-ana")["grant_sealed"] = row_of(evidence, "checker-ed")["grant_sealed"]


def of_another_generation(evidence: Evidence) -> None:
    row_of(evidence, "checker-ed")["token_version"] += 1


def flow_grant_that_does_not_open(evidence: Evidence) -> None:
    flow_of(evidence, "checker-ana").update(state="held", grant_sealed=b"sealed")


def hosts_metadata_lost(evidence: Evidence) -> None:
    del credential_of(evidence, "checker-bob")["metadata"]["plan"]


def somebody_elses_metadata(evidence: Evidence) -> None:
    credential_of(evidence, "checker-bob")["metadata"]["end_user_id"] = "checker-ana"


def another_oauth_app(evidence: Evidence) -> None:
    credential_of(evidence, "checker-bob")["oauth_app_id"] = "another"


def another_account(evidence: Evidence) -> None:
    credential_of(evidence, "checker-bob")["properties"]["installation_id"] = 1


def another_mode(evidence: Evidence) -> None:
    credential_of(evidence, "checker-ana")["properties"]["test"] = False


def imported_without_a_word_of_sequin(evidence: Evidence) -> None:
    for entry in imports_of(evidence, "checker-ed"):
        entry["status"] = 503


def claim_lost(evidence: Evidence) -> None:
    evidence.tables["claims"].clear()


def revoked_in_name_only(evidence: Evidence) -> None:
    account = row_of(evidence, "checker-dora")["account_id"]
    next(one for one in evidence.state["grants"] if one["account"] == account)["status"] = "active"


def back_from_the_dead(evidence: Evidence) -> None:
    ref = row_of(evidence, "checker-ana")["ref"]
    said = Exchange("checker-ana", "GET", f"http://broker/connections/{ref}", 200, shows=("It is disconnected.",))
    evidence.clients.append(said)


PLANTED: list[tuple[Plant, str]] = [
    (no_connection, "lost"),
    (no_credential, "lost"),
    (never_imported, "lost"),
    (interrupted_after_its_redirect, "lost"),
    (another_credential, "doubled"),
    (one_account_twice, "doubled"),
    (one_credential_for_two, "doubled"),
    (what_was_ended_in_sequin, "unowned"),
    (a_stranger_in_sequin, "unowned"),
    (code_sent_twice, "exchanged_twice"),
    (code_sent_again_after_a_lost_answer, "exchanged_twice"),
    (flow_under_way, "stuck"),
    (import_under_way, "stuck"),
    (removal_under_way, "stuck"),
    (revocation_under_way, "stuck"),
    (job_running, "stuck"),
    (job_waiting, "stuck"),
    (discard_waiting, "stuck"),
    (imports_in_the_wrong_order, "older_token"),
    (token_of_before, "older_token"),
    (another_token_than_sealed, "older_token"),
    (erased_before_it_was_verified, "erased_unverified"),
    (verified_without_a_look, "erased_unverified"),
    (grant_kept_by_its_flow, "kept"),
    (verifier_kept, "kept"),
    (sealed_for_another_row, "unreadable"),
    (of_another_generation, "unreadable"),
    (flow_grant_that_does_not_open, "unreadable"),
    (hosts_metadata_lost, "metadata"),
    (somebody_elses_metadata, "metadata"),
    (another_oauth_app, "mismatch"),
    (another_account, "mismatch"),
    (another_mode, "mismatch"),
    (imported_without_a_word_of_sequin, "dishonest"),
    (revoked_in_name_only, "dishonest"),
    (claim_lost, "unclaimed"),
    (back_from_the_dead, "resurrected"),
]


# --- the tests ------------------------------------------------------------------------------------------


def test_a_sound_world_passes(evidence: Evidence) -> None:
    assert violations(evidence) == []
    # Nothing was overlooked: everybody is there, with what they did.
    assert len(evidence.people) == 5
    assert len(evidence.flows) == 6
    assert len(evidence.live) == 4
    assert len(evidence.credentials) == 4
    assert any(each.says(" is disconnected") for each in evidence.clients)


@pytest.mark.parametrize(("plant", "code"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_what_is_planted_is_found(evidence: Evidence, plant: Plant, code: str) -> None:
    altered = Evidence(
        deepcopy(evidence.log),
        deepcopy(evidence.state),
        list(evidence.clients),
        deepcopy(evidence.tables),
        evidence.open,
    )
    plant(altered)

    assert code in {found.code for found in violations(altered)}


def test_every_promise_has_something_planted_against_it() -> None:
    source = (Path(handoff_checker.__file__)).read_text()
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    codes = {call.args[0].value for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Violation"
             and isinstance(call.args[0], ast.Constant)}  # fmt: skip

    assert codes == {code for _, code in PLANTED}


def test_the_program_tells_a_sound_world_from_one_that_lost_a_credential(
    sound_world: World, evidence: Evidence, diary: Path
) -> None:
    before = _run(sound_world, diary)
    credential = credential_of(evidence, "checker-ana")["id"]
    requests.delete(
        f"{sound_world.sandbox_url}/sequin/v1/credentials/{credential}",
        headers={"Authorization": f"Bearer {sound_world.environment['SEQUIN_API_TOKEN']}"},
        timeout=60,
    )

    after = _run(sound_world, diary)

    assert (before.returncode, before.stdout) == (0, "")
    assert "0 violations; 5 people" in before.stderr
    assert after.returncode == 1
    assert after.stdout.startswith("lost ")


def _run(world: World, diary: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.e2e.handoff_checker", "--sandbox", world.sandbox_url,
         "--database", world.database_url, "--clients", str(diary)],
        env=world.environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_it_uses_nothing_of_the_broker_but_the_vault() -> None:
    tree = ast.parse(Path(handoff_checker.__file__).read_text())
    imported = {
        f"{node.module}.{each.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("broker", "tests"))
        for each in node.names
    }
    assert imported == {"broker.vault.Binding", "broker.vault.Vault", "broker.settings.EncryptionKey"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)
                and any(each.name.startswith(("broker", "tests")) for each in node.names)]  # fmt: skip
