"""Moving from one broker to another on the command line, with a kill in the middle."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

from tests.databases import Databases
from tests.e2e.world import ROOT, World, command, eventually

MANY = 2_000


def many_lines() -> str:
    """Return an export of many connections, as another broker would have written it."""
    time = "2026-11-20T10:00:00Z"
    return "".join(
        json.dumps(
            {
                "ref": f"0000-0000-{number:04}",
                "end_user": {"id": f"user-{number}", "email": None, "name": None},
                "app": "stripe",
                "account": {"id": f"acct_{number}", "name": f"Account {number}", "mode": "live"},
                "sequin": {"credential_id": f"crd_{number}", "imported_at": time},
                "connected_at": time,
                "created_at": time,
            }
        )
        + "\n"
        for number in range(MANY)
    )


def test_an_import_that_is_killed_goes_on_and_ends_with_the_same_count(
    sqlite_databases: Databases, tmp_path: Path
) -> None:
    with sqlite_databases.migrated() as url:
        world = World(tmp_path, url)
        source = tmp_path / "export.jsonl"
        source.write_text(many_lines())
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "connections", "import", str(source)],
            env=world.environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(lambda: count(world) > 0 or process.poll() is not None, within=60)
        process.send_signal(signal.SIGKILL)
        process.wait()

        said = world.run("connections", "import", str(source))

        assert "0 bad" in said
        assert count(world) == MANY
        output = tmp_path / "again.jsonl"
        world.run("connections", "export", "--output", str(output))
        assert len(output.read_text().splitlines()) == MANY
        assert output.stat().st_mode & 0o077 == 0
        assert f"{MANY:,} were here already" in world.run("connections", "import", str(output))


def test_bad_lines_are_reported_and_end_with_one(sqlite_databases: Databases, tmp_path: Path) -> None:
    with sqlite_databases.migrated() as url:
        world = World(tmp_path, url)
        source = tmp_path / "tokens.csv"
        source.write_text(
            "end_user_id,app,account_id,mode,access_token\nada,stripe,acct_1,live,tok-1\njo,nope,a,live,tok-2\n"
        )

        done = command("connections", "import", "--csv", str(source), environment=world.environment)

        assert done.returncode == 1
        assert "1 moved in, 0 were here already, 1 bad." in done.stdout
        assert "line 3: names an OAuth app that is not configured here" in done.stderr
        assert "tok-" not in done.stdout + done.stderr


def test_nothing_is_moved_in_with_another_key_of_the_same_name(sqlite_databases: Databases, tmp_path: Path) -> None:
    with sqlite_databases.migrated() as url:
        world = World(tmp_path, url)
        source = tmp_path / "tokens.csv"
        source.write_text("end_user_id,app,account_id,mode,access_token\nada,stripe,acct_1,live,tok-1\n")
        world.run("keys", "check")
        kid = world.environment["BROKER_ENCRYPTION_KEYS"].partition(":")[0]
        other = {"BROKER_ENCRYPTION_KEYS": f"{kid}:{base64.b64encode(bytes(32)).decode()}"}

        done = command("connections", "import", "--csv", str(source), environment=world.environment | other)

        assert done.returncode != 0
        assert kid in done.stderr
        assert count(world) == 0


def count(world: World) -> int:
    with world.database() as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM connections")).scalar_one())
