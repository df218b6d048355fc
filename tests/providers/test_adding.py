"""The how-to, followed: its files are written into a copy of the repository, and nothing else is touched there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs/adding-a-provider.md"
BLOCK = re.compile(r"^```\w+\n(?:# |<!-- )(\S+)(?: -->)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOLDERS = ("broker", "docs", "migrations", "templates", "tests")
FILES = ("pyproject.toml", ".env.example", "README.md", "SECURITY.md")
TESTS = (
    *("tests/providers/test_contract.py", "tests/sandbox/test_stand_ins.py", "tests/test_documents.py"),
    *("tests/test_settings.py", "tests/web/test_languages.py"),
)
CHOSEN = "tidewater or tables_of_settings or names_every_document or example_file_lists or catalogue_holds"


def shown() -> Mapping[str, str]:
    """Return the files that the how-to shows, by path."""
    return dict(BLOCK.findall(HOW_TO.read_text(encoding="utf-8")))


def run(folder: Path, *arguments: str) -> str:
    """Run a module of Python there and return what it printed; fail if it fails."""
    environment = {**os.environ, "BROKER_TEST_DATABASES": "sqlite", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the how-to's files in it."""
    folder = tmp_path_factory.mktemp("copy")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    for path, text in shown().items():
        assert not (folder / path).exists()
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def test_it_shows_one_file_one_stand_in_one_folder_and_one_page() -> None:
    assert list(shown()) == [
        "broker/providers/tidewater.py",
        "broker/sandbox/stand_ins/tidewater.py",
        "tests/providers/tidewater/__init__.py",
        "docs/providers/tidewater.md",
    ]


def test_a_provider_added_by_it_keeps_every_promise(copy: Path) -> None:
    assert "docs/providers/tidewater.md is up to date." in run(copy, "tests.documents")
    assert "TIDEWATER_URL" in (copy / "docs/providers/tidewater.md").read_text(encoding="utf-8")
    modules = [path for path in shown() if path.endswith(".py")]
    run(copy, "ruff", "check", "--no-cache", *modules)
    run(copy, "ruff", "format", "--no-cache", "--check", *modules)
    told = run(copy, "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", CHOSEN)
    found = re.search(r"(\d+) passed", told)
    assert found is not None
    assert int(found[1]) > 80
