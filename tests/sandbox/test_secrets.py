from __future__ import annotations

import io
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from dotenv import dotenv_values

from broker.sandbox import Secrets, load_secrets, print_environment
from broker.sandbox.environment import dotenv, environment


def test_the_file_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    first = load_secrets(tmp_path / "data")
    assert asdict(load_secrets(tmp_path / "data")) == asdict(first)
    mode = stat.S_IMODE((tmp_path / "data" / "sandbox.json").stat().st_mode)
    assert mode == 0o600
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["sandbox.json"]


def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: load_secrets(tmp_path), range(4)))
    assert len({one.stripe_client_id for one in made}) == 1


def test_the_identifiers_look_like_the_real_ones(secrets: Secrets) -> None:
    assert secrets.stripe_client_id.startswith("ca_")
    assert secrets.stripe_secret_key.startswith("sk_test_")
    assert secrets.stripe_webhook_secret.startswith("whsec_")
    assert secrets.github_private_key.startswith("-----BEGIN RSA PRIVATE KEY-----")
    assert len(secrets.sequin_api_token) == 64


def test_an_unusable_file_is_named_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "sandbox.json").write_text("{}")
    with pytest.raises(ValueError, match="Delete it"):
        load_secrets(tmp_path)


def test_secrets_do_not_print(secrets: Secrets) -> None:
    assert secrets.stripe_secret_key not in repr(secrets)


def test_the_printed_environment_reads_back_exactly(tmp_path: Path) -> None:
    printed = print_environment(8100, tmp_path)
    wanted = environment(load_secrets(tmp_path), "http://127.0.0.1:8100")
    assert dict(dotenv_values(stream=io.StringIO(printed))) == wanted
    assert len(printed.splitlines()) == len(wanted)
    assert wanted["GITHUB_API_URL"] == "http://127.0.0.1:8100/github/api"


def test_awkward_values_survive_the_env_form() -> None:
    values = {"A": "two words", "B": 'a "quote" and a \\ backslash', "C": "# no comment", "D": "line\nbreak", "E": ""}
    assert dict(dotenv_values(stream=io.StringIO(dotenv(values)), interpolate=False)) == values
