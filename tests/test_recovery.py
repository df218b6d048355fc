"""Rehearsals of what docs/operating.md says: backups and restores, a lost key, a downgrade and the way back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from broker.app import create_app
from broker.attach import grant_binding
from broker.db import NoSuchRevision, SchemaBehind, downgrade, require_current_schema, upgrade
from broker.keyring import KeyRing
from broker.models import ConnectedAccount, EndUser
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.databases import Databases, postgresql_programs
from tests.documents import ROOT
from tests.house import House, make_settings, open_house

KEY = EncryptionKey("k1", bytes(range(32)))
ANOTHER = EncryptionKey("k1", bytes(range(32, 64)))
OPERATING = (ROOT / "docs/operating.md").read_text(encoding="utf-8")


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


def ring(house: House, key: EncryptionKey = KEY) -> KeyRing:
    return KeyRing(house.database, Vault([key]), house.clock)


def sealed_connection(house: House) -> str:
    """Add a connection whose grant is sealed, and plant the key's canary as a start of the broker does."""
    assert ring(house).check() == []
    ref = house.connection(house.end_user("jo"))
    sealed = Vault([KEY]).seal(f"grant of {ref}".encode(), grant_binding(ref, 1))
    house.run(sa.update(ConnectedAccount).values(grant_sealed=sealed, token_version=1))
    return ref


def opened(house: House, ref: str) -> str:
    sealed = house.value(sa.select(ConnectedAccount.grant_sealed).where(ConnectedAccount.ref == ref))
    return Vault([KEY]).open(bytes(sealed), grant_binding(ref, 1)).decode()


def documented(word: str) -> str:
    """Return the one block of commands in the document that holds a word."""
    blocks = re.findall(r"^```sh\n(.*?)^```", OPERATING, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return str(found)


def run(commands: str, folder: Path, url: str = "") -> None:
    """Run documented commands in a folder, with this Python and the tests' PostgreSQL programs."""
    path = os.pathsep.join([str(Path(sys.executable).parent), str(postgresql_programs()), os.environ["PATH"]])
    environment = {"PATH": path, "DATABASE_URL": url.replace("+psycopg", ""), "LC_ALL": "C"}
    done = subprocess.run(
        ["sh", "-eu", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def back_up(house: House, folder: Path) -> None:
    url = house.settings.database_url
    if house.database.is_sqlite:
        (folder / "instance").mkdir()
        (folder / "instance/broker.db").symlink_to(url.removeprefix("sqlite:///"))
        run(documented("VACUUM INTO"), folder)
    else:
        run(documented("pg_dump"), folder, url)


def restore(databases: Databases, house: House, folder: Path, empty: str) -> str:
    """Put the backup where nothing is and return its address."""
    if house.database.is_sqlite:
        (folder / "instance/broker.db").unlink()
        run(documented("cp backup/broker.db"), folder)
        return f"sqlite:///{folder}/instance/broker.db"
    run(documented("pg_restore"), folder, empty)
    return empty


def test_a_backup_is_taken_while_all_goes_on_and_brings_everything_back(
    house: House, databases: Databases, empty_database_url: str, tmp_path: Path
) -> None:
    ref = sealed_connection(house)
    with house.database.write() as writing:
        writing.execute(sa.insert(EndUser).values(external_id="halfway", created_at=house.clock.now()))
        back_up(house, tmp_path)
    house.run(sa.delete(ConnectedAccount))

    with open_house(restore(databases, house, tmp_path, empty_database_url)) as restored:
        require_current_schema(restored.database)
        assert ring(restored).check() == []
        assert opened(restored, ref) == f"grant of {ref}"
        people = restored.value(sa.select(sa.func.count()).select_from(EndUser))
        assert people == 1, "what had not been committed is not in it"
        assert restored.end_user("after"), "and it can be written to"


def test_a_backup_of_the_embedded_database_is_its_owners_alone(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/instance/broker.db")
    run(documented("VACUUM INTO"), tmp_path)
    assert (tmp_path / "backup/broker.db").stat().st_mode & 0o077 == 0


def test_a_wrong_key_is_told_at_once_and_putting_the_right_one_back_heals(house: House, tmp_path: Path) -> None:
    ref = sealed_connection(house)

    def ready(key: EncryptionKey) -> tuple[int, str]:
        settings = make_settings(house.settings.database_url, data_dir=tmp_path, encryption_keys=(key,))
        app = create_app(settings, clock=house.clock)
        answer = app.test_client().get("/readyz")
        app.extensions["broker"].database.engine.dispose()
        return answer.status_code, answer.get_json().get("reason", "")

    (problem,) = ring(house, ANOTHER).check()
    assert "k1" in problem
    assert ring(house, ANOTHER).sample().unreadable == (ref,), "which connection it costs is told"
    assert ready(ANOTHER) == (503, "keys_do_not_open")

    assert ring(house).check() == []
    assert ring(house).sample().unreadable == ()
    assert ready(KEY) == (200, "")
    assert opened(house, ref) == f"grant of {ref}"


def test_a_key_that_is_gone_is_asked_for_by_name(house: House) -> None:
    sealed_connection(house)
    (problem,) = ring(house, EncryptionKey("k2", bytes(range(64, 96)))).check()
    assert "Key k1" in problem
    assert "put it back" in problem


def test_one_version_back_and_forth_keeps_connections_and_their_grants(house: House) -> None:
    ref = sealed_connection(house)
    house.database.engine.dispose()

    downgrade(house.settings.database_url, "-1")
    with pytest.raises(SchemaBehind) as behind:
        require_current_schema(house.database)
    assert "broker db upgrade" in behind.value.cure, "this version says so instead of serving the older tables"

    upgrade(house.settings.database_url)
    require_current_schema(house.database)
    assert opened(house, ref) == f"grant of {ref}"


@pytest.mark.parametrize("revision", ["9999", "nonsense"])
def test_a_revision_that_nobody_knows_is_told_and_changes_nothing(house: House, revision: str) -> None:
    with pytest.raises(NoSuchRevision):
        downgrade(house.settings.database_url, revision)
    require_current_schema(house.database)
