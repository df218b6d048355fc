"""The databases that tests get: fresh, of both kinds, and gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.conftest import DATABASES
from tests.databases import Databases, SqliteDatabases

ROOT = Path(__file__).parent.parent
HOLD = """
import time
from tests.databases import postgresql
with postgresql() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


def _visits(url: str) -> int:
    """Add one to the visits counted in the database and return how many there were before."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS visits (n INTEGER)")
        before = int(connection.exec_driver_sql("SELECT count(*) FROM visits").scalar_one())
        connection.exec_driver_sql("INSERT INTO visits VALUES (1)")
    engine.dispose()
    return before


@pytest.mark.parametrize("_run", [1, 2])
def test_every_test_gets_a_database_of_its_own(empty_database_url: str, _run: int) -> None:
    assert _visits(empty_database_url) == 0
    assert _visits(empty_database_url) == 1


def test_a_migrated_database_has_the_current_schema(database_url: str) -> None:
    engine = sa.create_engine(database_url)

    assert "alembic_version" in sa.inspect(engine).get_table_names()
    engine.dispose()


def test_two_databases_of_one_test_share_nothing(databases: Databases) -> None:
    with databases.empty() as one, databases.empty() as other:
        assert one != other
        assert _visits(one) == _visits(other) == 0


def test_a_database_is_migrated_once_and_then_copied(tmp_path: Path) -> None:
    migrated: list[str] = []

    def migrate(url: str) -> None:
        migrated.append(url)
        _visits(url)

    databases = SqliteDatabases(tmp_path, migrate)
    for _ in range(2):
        with databases.migrated() as url:
            assert _visits(url) == 1

    assert len(migrated) == 1


@pytest.mark.skipif("postgresql" not in DATABASES, reason="BROKER_TEST_DATABASES leaves PostgreSQL out")
def test_a_killed_run_leaves_no_server_and_no_folder() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        server = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        holder.kill()

    _until(lambda: not folder.exists())
    _until(lambda: not _runs(server))


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
