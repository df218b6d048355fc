"""What the project promises about itself: pins, layout, the README, the layers."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from pytest_socket import SocketBlockedError, SocketConnectBlockedError

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = PYPROJECT["project"]["dependencies"]
TRACES = PYPROJECT["project"]["optional-dependencies"]["otel"]
DEVELOPMENT = PYPROJECT["dependency-groups"]["dev"]
REQUIREMENTS = {
    "requirements.txt": RUNTIME,
    "requirements-otel.txt": RUNTIME + TRACES,
    "requirements-dev.txt": RUNTIME + TRACES + DEVELOPMENT,
}
TARGETS = ["demo", "test", "setup", "lint", "types", "sure", "bench", "browser", "help"]
EXPECTED = {
    *("pyproject.toml", "requirements.txt", "requirements-otel.txt", "requirements-dev.txt"),
    *("wsgi.py", "Makefile"),
    *("broker", "templates", "migrations", "tests", "docs", "examples", "benchmarks"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE"),
    *(
        "Dockerfile",
        "compose.yaml",
        "Procfile",
        "deploy",
        ".dockerignore",
        ".env.example",
        ".gitignore",
        ".gitattributes",
        ".ci",
        ".github",
    ),
}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def _pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    found = [re.match(r"([a-z0-9-]+)==([^ ;]+)", line) for line in lines]
    return {match[1]: Version(match[2]) for match in found if match}


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_name_no_index(name: str) -> None:
    text = (ROOT / name).read_text()

    for word in ("://", "index", "find-links", "file:", "#"):
        assert word not in text


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_every_requirement_is_pinned_and_hashed(name: str) -> None:
    entries = (ROOT / name).read_text().replace("\\\n", " ").splitlines()

    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==", entry)
        assert "--hash=sha256:" in entry


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_the_pins_are_within_the_bounds(name: str) -> None:
    pins = _pins(name)

    for requirement in map(Requirement, REQUIREMENTS[name]):
        bounds = str(requirement.specifier)
        assert ">=" in bounds
        assert "<" in bounds.replace(">=", "")
        assert pins[requirement.name] in requirement.specifier, requirement.name


@pytest.mark.parametrize("deployed", ["requirements.txt", "requirements-otel.txt"])
def test_tests_run_on_what_is_deployed(deployed: str) -> None:
    assert _pins(deployed).items() <= _pins("requirements-dev.txt").items()


def test_only_who_asks_for_traces_gets_what_they_take() -> None:
    traces = {Requirement(each).name for each in TRACES}

    assert traces <= _pins("requirements-otel.txt").keys()
    assert not [name for name in _pins("requirements.txt") if name.startswith("opentelemetry")]
    assert _pins("requirements.txt").items() <= _pins("requirements-otel.txt").items()


def test_the_top_level_holds_what_people_expect_there_and_nothing_else() -> None:
    listed = _run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        pytest.skip("not a git checkout")

    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= EXPECTED


def test_no_module_has_a_name_that_says_nothing() -> None:
    modules = [path for folder in ("broker", "tests") for path in (ROOT / folder).rglob("*")]

    assert not [path for path in modules if path.stem in VAGUE_NAMES]


def test_the_readme_opens_with_the_two_commands() -> None:
    first = re.search(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    assert first is not None
    assert first[1].splitlines() == ["make demo", "make test"]


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    assert "step make test\n" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize(
    "command", re.findall(r"^\| `broker ([a-z ]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)
)
def test_every_command_in_the_readme_exists(command: str) -> None:
    done = _run(sys.executable, "-m", "broker", *command.split(), "--help")

    assert done.returncode == 0, done.stderr


def test_make_help_lists_every_target() -> None:
    listed = _run("make", "--no-print-directory", "help").stdout

    for target in TARGETS:
        assert f"  make {target} " in listed


def test_arrows_point_one_way() -> None:
    command = "from importlinter.cli import lint_imports_command as run; run(['--no-logo', '--no-cache'])"
    done = _run(sys.executable, "-c", command)

    assert done.returncode == 0, done.stdout


def test_a_wheel_carries_pages_and_migrations(tmp_path: Path) -> None:
    built = _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    assert built.returncode == 0, built.stderr

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())
    for folder in ("templates", "migrations"):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert files
        assert {f"broker/{path.relative_to(ROOT)}" for path in files} <= packed
    assert "broker/py.typed" in packed


def test_a_test_cannot_open_a_socket() -> None:
    with pytest.raises(SocketBlockedError):
        socket.create_connection(("127.0.0.1", 9), timeout=1)


@pytest.mark.network
def test_a_network_test_reaches_this_machine_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=1).close()

    with pytest.raises(SocketConnectBlockedError):
        socket.create_connection(("192.0.2.1", 9), timeout=1)
