"""Settings: every problem at once, each with its fix, and no value of a secret anywhere."""

from __future__ import annotations

import base64
import logging
import re
import traceback
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import Field

from broker.errors import SettingsError
from broker.providers import discover
from broker.secret import Secret
from broker.settings import (
    CONFIG_SETTINGS,
    SETTINGS,
    AppOptions,
    Branding,
    EncryptionKey,
    HttpAddress,
    Limits,
    PeopleSignIn,
    Retention,
    Settings,
    Webhooks,
    app_settings,
    generate_key,
    load_settings,
)

ROOT = Path(__file__).parent.parent
ABSENT: dict[str, str] = {}


class StripeOptions(AppOptions):
    connect_url: HttpAddress = "https://connect.stripe.com"
    api_url: HttpAddress = "https://api.stripe.com"


class StripeAppOptions(AppOptions):
    marketplace_url: HttpAddress = Field(
        "https://marketplace.stripe.com", json_schema_extra={"env": "STRIPE_MARKETPLACE_URL"}
    )
    api_url: HttpAddress = Field("https://api.stripe.com", json_schema_extra={"env": "STRIPE_API_URL"})


class GitHubOptions(AppOptions):
    app_slug: str
    app_id: int
    private_key: Secret
    url: HttpAddress = "https://github.com"
    api_url: HttpAddress | None = "https://api.github.com"


class GitHubOAuthOptions(AppOptions):
    url: HttpAddress = Field("https://github.com", json_schema_extra={"env": "GITHUB_URL"})
    api_url: HttpAddress = Field("https://api.github.com", json_schema_extra={"env": "GITHUB_API_URL"})


PROVIDERS: dict[str, type[AppOptions]] = {
    "stripe": StripeOptions,
    "stripe_app": StripeAppOptions,
    "github": GitHubOptions,
    "github_oauth": GitHubOAuthOptions,
}

GOOD = {
    "BROKER_PUBLIC_URL": "https://connect.acme.example",
    "BROKER_SECRET_KEY": "Zq8-vT3kLw0_xYb6NcRj2sHf9uMe5aGpD1oKiQ7t",
    "BROKER_ENCRYPTION_KEYS": generate_key("k1"),
    "SEQUIN_API_TOKEN": "sequin-token",
    "STRIPE_CLIENT_ID": "ca_1",
    "STRIPE_CLIENT_SECRET": "sk_test_1",
}
CORE = {name: value for name, value in GOOD.items() if not name.startswith("STRIPE_")}
GITHUB = {
    "GITHUB_CLIENT_ID": "Iv1.1",
    "GITHUB_CLIENT_SECRET": "ghs",
    "GITHUB_APP_SLUG": "acme",
    "GITHUB_APP_ID": "12",
    "GITHUB_PRIVATE_KEY": "-----BEGIN RSA PRIVATE KEY-----\\nabc\\n-----END RSA PRIVATE KEY-----\\n",
}
DEVELOPMENT = {"BROKER_ENV": "development"}
APP = '[apps.stripe]\nprovider = "stripe"\nclient_id = "ca_1"\nclient_secret = { env = "S_KEY" }\n'


def load(environ: dict[str, str] = ABSENT, base: dict[str, str] = GOOD, dotenv: Path | None = None) -> Settings:
    return load_settings({**base, **environ}, PROVIDERS, dotenv=dotenv)


def problems(environ: dict[str, str] = ABSENT, base: dict[str, str] = GOOD, dotenv: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        load(environ, base, dotenv)
    return raised.value.problems


def problem(environ: dict[str, str] = ABSENT, base: dict[str, str] = GOOD) -> str:
    found = problems(environ, base)
    assert len(found) == 1, found
    return found[0]


class Toml:
    """Writes the TOML file and reads settings that point at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environ(self, text: str, environ: dict[str, str] = ABSENT) -> dict[str, str]:
        path = self.folder / "broker.toml"
        path.write_text(text, encoding="utf-8")
        return {**CORE, "BROKER_CONFIG": str(path), "S_KEY": "sk_test_2", **environ}

    def load(self, text: str, environ: dict[str, str] = ABSENT) -> Settings:
        return load_settings(self.environ(text, environ), PROVIDERS)

    def problems(self, text: str, environ: dict[str, str] = ABSENT) -> list[str]:
        return problems(self.environ(text, environ), base={})

    def problem(self, text: str, environ: dict[str, str] = ABSENT) -> str:
        found = self.problems(text, environ)
        assert len(found) == 1, found
        return found[0]


@pytest.fixture
def toml(tmp_path: Path) -> Toml:
    return Toml(tmp_path)


# --- the whole ----------------------------------------------------------------------------------------


def test_an_empty_environment_lists_everything_that_is_required_at_once() -> None:
    found = problems(base={})

    assert [sentence.split(" ")[0] for sentence in found[:4]] == [
        "BROKER_PUBLIC_URL",
        "BROKER_SECRET_KEY",
        "BROKER_ENCRYPTION_KEYS",
        "SEQUIN_API_TOKEN",
    ]
    assert found[2] == "BROKER_ENCRYPTION_KEYS is not set: run `broker keys generate` and put its output there."
    assert found[4].startswith("There is no OAuth app: set for example STRIPE_CLIENT_ID and STRIPE_CLIENT_SECRET")
    assert len(found) == 5


def test_problems_of_every_kind_are_reported_together(toml: Toml) -> None:
    found = toml.problems(
        "[limits]\nflow_minutes = 1\n[branding]\ncolor = 'red'\n[apps.a]\nprovider = 'stripe'\n",
        {"PORT": "x", "BROKER_PUBLIC_URL": "", "BROKER_WORKER": "1", "DEBUG": "1", "GITHUB_WHY": "Because"},
    )

    starts = " | ".join(sentence.split(":")[0] for sentence in found)
    for expected in (
        "BROKER_PUBLIC_URL is not set",
        "PORT is not a whole number from 1 to 65535",
        "[branding] color is not a colour",
        "[limits] flow_minutes is not a whole number from 5 to 1440",
        "[apps.a] client_id is not set",
        "[apps.a] client_secret is not set",
        "GITHUB_CLIENT_ID is not set",
        "GITHUB_APP_SLUG is not set",
        "BROKER_WORKER is not a setting of the broker",
        "DEBUG is on",
    ):
        assert expected in starts


def test_every_problem_is_one_sentence_on_one_line_that_names_its_fix() -> None:
    for sentence in problems({"PORT": "0", "DATABASE_URL": "mysql://x", "BROKER_LOG_LEVEL": "LOUD"}, base={}):
        assert "\n" not in sentence
        assert ": " in sentence
        assert sentence[-1] in ".?"


def test_the_least_that_works_gives_safe_defaults(tmp_path: Path) -> None:
    settings = load({"DATA_DIR": str(tmp_path)})

    assert settings.environment == "production"
    assert settings.public_url == "https://connect.acme.example"
    assert settings.secure_cookies
    assert settings.database_url == f"sqlite:///{tmp_path}/broker.db"
    assert settings.sequin_api_url == "https://api.sequin.io"
    assert (settings.port, settings.workers, settings.trusted_proxies) == (8000, 2, 0)
    assert (settings.log_level, settings.log_format, settings.keep_grants) == ("INFO", "json", False)
    assert settings.limits == Limits(100, 50, enabled=True)
    assert (settings.flow_minutes, settings.link_minutes) == (60, 30)
    assert settings.retention == Retention(400, 30)
    assert settings.branding == Branding()
    assert settings.return_origins == ()
    assert settings.warnings == ()
    assert load(DEVELOPMENT).log_format == "text"


def test_data_lives_in_instance_under_the_working_directory() -> None:
    assert load().data_dir == Path.cwd() / "instance"
    assert load().database_url == f"sqlite:///{Path.cwd()}/instance/broker.db"


def test_settings_are_frozen() -> None:
    settings = load()

    with pytest.raises(AttributeError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.apps["other"] = settings.apps["stripe"]  # type: ignore[index]


def test_addresses_for_providers_are_built_from_the_public_url() -> None:
    settings = load()

    assert settings.callback_url("stripe") == "https://connect.acme.example/oauth/stripe/callback"
    assert settings.setup_url("stripe") == "https://connect.acme.example/oauth/stripe/setup"
    with pytest.raises(KeyError):
        settings.callback_url("other")


# --- where settings come from -------------------------------------------------------------------------


def test_the_environment_wins_over_the_dotenv_file(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=9000\nBROKER_WORKERS='4' # threads\nBROKER_LOG_LEVEL=debug\n")

    settings = load({"PORT": "7000", "BROKER_LOG_LEVEL": ""}, dotenv=dotenv)

    assert (settings.port, settings.workers, settings.log_level) == (7000, 4, "INFO")
    assert settings.sources["PORT"] == "environment"
    assert settings.sources["BROKER_WORKERS"] == ".env"
    assert settings.sources["BROKER_LOG_LEVEL"] == "default"


def test_a_missing_dotenv_file_is_no_problem_and_an_unreadable_one_is(tmp_path: Path) -> None:
    assert load(dotenv=tmp_path / ".env").port == 8000
    assert problems(dotenv=tmp_path)[0].startswith("The .env file cannot be read (is a directory)")


def test_a_dollar_in_the_dotenv_file_stays_a_dollar(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("SEQUIN_API_TOKEN=a${HOME}b\n")

    environ = {name: value for name, value in GOOD.items() if name != "SEQUIN_API_TOKEN"}
    settings = load_settings(environ, PROVIDERS, dotenv=dotenv)

    assert settings.sequin_api_token.reveal() == "a${HOME}b"


@pytest.mark.parametrize("setting", [one for one in SETTINGS if one.name != "BROKER_CONFIG"], ids=lambda one: one.name)
def test_every_setting_can_come_from_a_file(setting: object, tmp_path: Path) -> None:
    name = setting.name  # type: ignore[attr-defined]
    value = GOOD.get(name) or setting.example or "a-token-of-some-length"  # type: ignore[attr-defined]
    path = tmp_path / "value"
    path.write_text(f"{value}\n")
    environ = {other: text for other, text in GOOD.items() if other != name}

    assert load_settings({**environ, f"{name}_FILE": str(path)}, PROVIDERS).sources[name] == "file"


@pytest.mark.parametrize(("content", "value"), [("a b\n", "a b"), ("a b\r\n", "a b"), ("a b", "a b")])
def test_one_newline_at_the_end_of_a_file_is_dropped(content: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "why").write_bytes(content.encode())

    assert load({"STRIPE_WHY_FILE": str(tmp_path / "why")}).apps["stripe"].why == value


def test_a_secret_file_with_a_second_line_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sk_1\n\n")
    environ = {name: value for name, value in GOOD.items() if name != "STRIPE_CLIENT_SECRET"}

    assert "STRIPE_CLIENT_SECRET holds a space, a line break" in problem(
        {"STRIPE_CLIENT_SECRET_FILE": str(tmp_path / "secret")}, base=environ
    )


def test_a_home_directory_that_does_not_exist_is_a_problem(toml: Toml) -> None:
    assert problem({"DATA_DIR": "~nobody-of-this-name/x"}).startswith("DATA_DIR begins with a home directory")
    assert "begins with a home directory" in toml.problem(
        APP.replace('{ env = "S_KEY" }', '{ file = "~no-such-one/x" }')
    )


def test_a_name_and_its_file_together_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("9000")

    assert problem({"PORT": "8000", "PORT_FILE": str(tmp_path / "port")}) == (
        "PORT_FILE and PORT are both set: keep one of them."
    )


def test_a_file_that_cannot_be_read_is_reported_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    environ = {name: value for name, value in GOOD.items() if name != "BROKER_SECRET_KEY"}

    def sentence(path: str) -> str:
        return problem({"BROKER_SECRET_KEY_FILE": path}, base=environ)

    assert sentence("sk-planted-here") == (
        "BROKER_SECRET_KEY_FILE names a file that cannot be read (no such file or directory): "
        "correct the path or its permissions."
    )
    assert "is empty" in sentence(str(tmp_path / "empty"))
    assert "is not UTF-8 text" in sentence(str(tmp_path / "binary"))


def test_what_hosts_call_the_broker_with_may_stand_beside_its_settings() -> None:
    assert load({"BROKER_API_KEY": "brk_1", "BROKER_URL": "http://localhost:8000"}).warnings == load({}).warnings


def test_misspelt_broker_names_are_problems_with_a_suggestion() -> None:
    assert problem({"BROKER_PUBLC_URL": "x"}) == (
        "BROKER_PUBLC_URL is not a setting of the broker: did you mean BROKER_PUBLIC_URL?"
    )
    assert problem({"BROKER_PORT": "8000"}).endswith("did you mean PORT?")
    assert problem({"BROKER_XYZZY_QUUX": "1"}).endswith("remove it; .env.example lists all settings.")


def test_misspelt_names_in_the_dotenv_file_are_problems_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BROKER_WORKER=1\n")

    assert problems(dotenv=tmp_path / ".env")[0].endswith("did you mean BROKER_WORKERS?")


def test_what_opentelemetry_reads_by_itself_is_missed_in_the_dotenv_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTEL_EXPORTER_OTLP_ENDPOINT=http://planted:4318\n")

    (warning,) = load(dotenv=tmp_path / ".env").warnings
    assert warning.startswith("OTEL_EXPORTER_OTLP_ENDPOINT stands in the .env, where OpenTelemetry does not look")
    assert "planted" not in warning
    # As whoever hands the whole file to the process does it.
    assert load({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://planted:4318"}, dotenv=tmp_path / ".env").warnings == ()


def test_names_that_kubernetes_gives_beside_a_service_called_broker_are_no_problem() -> None:
    load(
        {
            "BROKER_SERVICE_HOST": "10.0.0.1",
            "BROKER_SERVICE_PORT_HTTP": "80",
            "BROKER_PORT": "tcp://10.0.0.1:80",
            "BROKER_PORT_80_TCP_ADDR": "10.0.0.1",
            "BROKER_WEB_SERVICE_HOST": "10.0.0.2",
        }
    )


def test_misspelt_shorthand_warns_but_stops_nothing() -> None:
    settings = load({"STRIPE_SCOPE": "read_only"})

    assert settings.warnings == ("STRIPE_SCOPE is not read by the broker: did you mean STRIPE_SCOPES?",)


# --- production and development -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "start"),
    [
        ({"BROKER_PUBLIC_URL": "http://connect.acme.example"}, "BROKER_PUBLIC_URL is not https: use https;"),
        ({"BROKER_PUBLIC_URL": "https://localhost"}, "BROKER_PUBLIC_URL is a loopback address"),
        ({"BROKER_PUBLIC_URL": "https://127.8.9.1:8443"}, "BROKER_PUBLIC_URL is a loopback address"),
        ({"BROKER_PUBLIC_URL": "http://[::1]:8000"}, "BROKER_PUBLIC_URL is a loopback address"),
        ({"BROKER_PUBLIC_URL": "https://[::ffff:127.0.0.1]"}, "BROKER_PUBLIC_URL is a loopback address"),
        ({"BROKER_PUBLIC_URL": "https://broker.localhost"}, "BROKER_PUBLIC_URL is a loopback address"),
        ({"SEQUIN_API_URL": "http://127.0.0.1:8100/sequin"}, "SEQUIN_API_URL is a loopback address"),
        ({"SEQUIN_API_URL": "http://api.sequin.io"}, "SEQUIN_API_URL is not https"),
        ({"STRIPE_API_URL": "http://localhost:8100/stripe"}, "STRIPE_API_URL is a loopback address"),
        ({"STRIPE_CONNECT_URL": "http://stripe.test"}, "STRIPE_CONNECT_URL is not https"),
        ({"BROKER_RETURN_ORIGINS": "http://app.acme.example"}, "BROKER_RETURN_ORIGINS is not https"),
        ({"BROKER_SECRET_KEY": "Zq8-vT3kLw0_xYb6NcRj2sHf9uMe5aG"}, "BROKER_SECRET_KEY is shorter than 32 characters"),
        ({"BROKER_SECRET_KEY": "secret"}, "BROKER_SECRET_KEY is an example"),
        ({"BROKER_SECRET_KEY": "change-me"}, "BROKER_SECRET_KEY is an example"),
        ({"BROKER_SECRET_KEY": "x" * 40}, "BROKER_SECRET_KEY is an example"),
        ({"BROKER_SECRET_KEY": "0123456789abcdef" * 3}, "BROKER_SECRET_KEY is an example"),
        ({"BROKER_SECRET_KEY": "please-CHANGE_ME-before-you-go-live-1234"}, "BROKER_SECRET_KEY is an example"),
        ({"BROKER_LIMITS": "off"}, "BROKER_LIMITS is off, which production refuses"),
        ({"FLASK_DEBUG": "1"}, "FLASK_DEBUG is on, which production refuses"),
        ({"DEBUG": "true"}, "DEBUG is on, which production refuses"),
    ],
)
def test_production_refuses_anything_unsafe(environ: dict[str, str], start: str) -> None:
    assert problem(environ).startswith(start)


@pytest.mark.parametrize("value", ["0", "false", "off", ""])
def test_production_takes_debugging_that_is_off(value: str) -> None:
    load({"DEBUG": value, "FLASK_DEBUG": value})


def test_development_takes_http_on_loopback_and_says_so() -> None:
    settings = load(
        DEVELOPMENT
        | {
            "BROKER_PUBLIC_URL": "http://localhost:8000",
            "SEQUIN_API_URL": "http://127.0.0.1:8100/sequin/",
            "STRIPE_API_URL": "http://[::1]:8100/stripe",
            "BROKER_RETURN_ORIGINS": "http://localhost:8000",
            "BROKER_SECRET_KEY": "short",
            "BROKER_LIMITS": "off",
            "DEBUG": "1",
        }
    )

    assert not settings.secure_cookies
    assert settings.sequin_api_url == "http://127.0.0.1:8100/sequin"
    assert not settings.limits.enabled
    assert [sentence.split(" ")[0] for sentence in settings.warnings] == [
        "BROKER_PUBLIC_URL",
        "BROKER_SECRET_KEY",
        "BROKER_LIMITS",
    ]


@pytest.mark.parametrize("name", ["BROKER_PUBLIC_URL", "SEQUIN_API_URL", "STRIPE_API_URL", "BROKER_RETURN_ORIGINS"])
def test_development_refuses_http_beyond_this_machine(name: str) -> None:
    assert problem({**DEVELOPMENT, name: "http://192.168.1.5"}).startswith(
        f"{name} uses plain http beyond this machine"
    )


def test_an_unknown_environment_is_a_problem_and_the_rules_of_production_hold() -> None:
    found = problems({"BROKER_ENV": "staging", "BROKER_PUBLIC_URL": "http://connect.acme.example"})

    assert found[0].startswith("BROKER_PUBLIC_URL is not https") or found[1].startswith(
        "BROKER_PUBLIC_URL is not https"
    )
    assert "BROKER_ENV is not one of production, development: write for example BROKER_ENV=production." in found


# --- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "connect.acme.example",
        "ftp://connect.acme.example",
        "https://",
        "https://connect.acme.example/path",
        "https://connect.acme.example/?a=b",
        "https://connect.acme.example/#top",
        "https://user:planted-password@connect.acme.example",
        "https://connect.acme.example\\@evil.example",
        "https://connect acme.example",
        "https://connect.\tacme.example",
        "https://acme.example:planted-port",
        "https://acme.example:0",
        "https://acme.example:70000",
        "https://2130706433",
        "https://127.1",
        "https://0.0.0.0",
        "https://[::]",
        "https://[::1",
        "https://exämple.com",
        "https://%65vil.example",
        "https://acme.example.",
    ],
)
def test_what_is_not_plainly_an_origin_is_refused(text: str) -> None:
    for mode in ("production", "development"):
        sentence = problem({"BROKER_PUBLIC_URL": text, "BROKER_ENV": mode})
        assert sentence.startswith("BROKER_PUBLIC_URL ")
        assert "planted" not in sentence


def test_origins_are_written_as_browsers_write_them() -> None:
    settings = load(
        {
            "BROKER_PUBLIC_URL": "HTTPS://Connect.ACME.example:443/",
            "BROKER_RETURN_ORIGINS": "https://app.acme.example/, https://App.acme.example:8443,https://app.acme.example,",
        }
    )

    assert settings.public_url == "https://connect.acme.example"
    assert settings.return_origins == ("https://app.acme.example", "https://app.acme.example:8443")


@pytest.mark.parametrize(
    "text", ["*", "https://*.acme.example", "null", "https://app.acme.example/path", "//app.acme.example"]
)
def test_return_origins_are_exact(text: str) -> None:
    assert problem({"BROKER_RETURN_ORIGINS": f"https://ok.acme.example,{text}"}).startswith("BROKER_RETURN_ORIGINS ")


def test_base_addresses_keep_their_path_and_lose_the_last_slash() -> None:
    settings = load({"STRIPE_API_URL": "https://stripe.acme.example/api/v3/"})

    assert settings.apps["stripe"].options == StripeOptions(api_url="https://stripe.acme.example/api/v3")
    assert problem({"STRIPE_API_URL": "https://stripe.acme.example/?x=1"}).startswith("STRIPE_API_URL has a query")


# --- keys ---------------------------------------------------------------------------------------------


def encoded(key: bytes) -> str:
    return base64.b64encode(key).decode()


RANDOM = bytes.fromhex("8f1d3c5be2a94760f3d2c81b0a6e7594dc13b8fa027e4695c1d06b3a9f58e247")


def test_the_key_ring_keeps_its_order() -> None:
    settings = load({"BROKER_ENCRYPTION_KEYS": f"new:{encoded(RANDOM)}, {generate_key('old')},"})

    assert [key.kid for key in settings.encryption_keys] == ["new", "old"]
    assert settings.encryption_keys[0] == EncryptionKey("new", RANDOM)


def test_a_generated_key_is_named_after_the_day_and_accepted() -> None:
    generated = generate_key()

    assert re.fullmatch(r"k20\d{6}:[A-Za-z0-9+/]{43}=", generated)
    assert generated != generate_key()
    assert len(load({"BROKER_ENCRYPTION_KEYS": generated}).encryption_keys[0].key) == 32
    with pytest.raises(ValueError, match="1 to 32 letters"):
        generate_key("a:b")


@pytest.mark.parametrize(
    ("ring", "complaint"),
    [
        (encoded(RANDOM), "has no name in entry 1"),
        (f"k1:{encoded(RANDOM)},:{encoded(RANDOM)}", "has a name in entry 2 that is not"),
        (f"{encoded(RANDOM)}:k1", "has a name in entry 1 that is not"),
        ("k1:not*base64", "has a key in entry 1 that is not base64"),
        (f"k1:{encoded(RANDOM[:16])}", "has a key in entry 1 that is not 32 bytes long"),
        (f"k1:{encoded(RANDOM + b'x')}", "has a key in entry 1 that is not 32 bytes long"),
        (f"k1:{encoded(RANDOM)},k1:{encoded(RANDOM[::-1])}", "has the same name in entries 1 and 2"),
        (f"k1:{encoded(RANDOM)},k2:{encoded(RANDOM)}", "has the same key in entries 1 and 2"),
        (f"k1:{encoded(bytes(32))}", "has an example key in entry 1"),
        (f"k1:{encoded(bytes(range(32)))}", "has an example key in entry 1"),
        (f"k1:{encoded(b'0123456789abcdef0123456789abcdef')}", "has an example key in entry 1"),
        (f"k1:{encoded(b'correct horse battery staple 123')}", "has an example key in entry 1"),
    ],
)
def test_a_key_ring_that_cannot_be_used_is_refused_by_the_number_of_its_entry(ring: str, complaint: str) -> None:
    assert problem({"BROKER_ENCRYPTION_KEYS": ring}).startswith(f"BROKER_ENCRYPTION_KEYS {complaint}")


def test_development_takes_example_keys_with_a_warning() -> None:
    settings = load(DEVELOPMENT | {"BROKER_ENCRYPTION_KEYS": f"k1:{encoded(bytes(32))}"})

    assert "BROKER_ENCRYPTION_KEYS has an example key in entry 1: production refuses it." in settings.warnings


# --- numbers, switches, database ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "8_000"),
        ("PORT", "٣"),
        ("PORT", "9" * 5000),
        ("BROKER_PROCESSES", "0"),
        ("BROKER_WORKERS", "65"),
        ("BROKER_WORKERS", "-1"),
        ("BROKER_TRUSTED_PROXIES", "11"),
        ("BROKER_KEEP_GRANTS", "perhaps"),
        ("BROKER_LOG_LEVEL", "LOUD"),
        ("BROKER_LOG_FORMAT", "xml"),
        ("BROKER_LIMITS", "some"),
    ],
)
def test_values_outside_their_range_are_refused_with_an_example(name: str, text: str) -> None:
    sentence = problem({name: text})

    assert sentence.startswith(f"{name} is ")
    assert f"write for example {name}=" in sentence


def test_values_at_the_edges_are_taken() -> None:
    settings = load(
        {
            "PORT": "65535",
            "BROKER_PROCESSES": "64",
            "BROKER_WORKERS": "0",
            "BROKER_TRUSTED_PROXIES": "10",
            "BROKER_KEEP_GRANTS": "YES",
        }
    )

    assert (settings.port, settings.processes, settings.workers) == (65535, 64, 0)
    assert settings.trusted_proxies == 10
    assert settings.keep_grants


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("postgres://u:p@db/broker", "postgresql+psycopg://u:p@db/broker"),
        ("postgresql://u:p@db/broker?sslmode=require", "postgresql+psycopg://u:p@db/broker?sslmode=require"),
        ("postgresql+psycopg://u@db/broker", "postgresql+psycopg://u@db/broker"),
        ("postgresql:///broker?host=/run/postgresql", "postgresql+psycopg:///broker?host=/run/postgresql"),
        ("sqlite:////var/lib/broker.db", "sqlite:////var/lib/broker.db"),
        ("sqlite:///data/broker.db", f"sqlite:///{Path.cwd()}/data/broker.db"),
    ],
)
def test_the_database_address_is_written_as_sqlalchemy_takes_it(text: str, url: str) -> None:
    assert load({"DATABASE_URL": text}).database_url == url


@pytest.mark.parametrize(
    "text",
    [
        "mysql://u:planted-password@db/x",
        "postgresql+psycopg2://u:planted-password@db/x",
        "planted-password",
        "postgresql://u:planted/password@db/x",
        "postgresql://u:planted-password@[db/x",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_other_databases_are_refused_without_quoting_the_password(text: str) -> None:
    sentence = problem({"DATABASE_URL": text})

    assert sentence.startswith("DATABASE_URL ")
    assert "planted" not in sentence


# --- OAuth apps by shorthand --------------------------------------------------------------------------


def test_shorthand_makes_one_app_named_after_its_provider() -> None:
    app = load(
        {
            "STRIPE_SCOPES": "read_write, read_only read_write",
            "STRIPE_SEQUIN_OAUTH_APP_ID": "oa_1",
            "STRIPE_WEBHOOK_SECRET": "whsec_1,whsec_2",
            "STRIPE_WHY": "To show your revenue.",
        }
    ).apps["stripe"]

    assert (app.key, app.provider, app.client_id, app.why) == ("stripe", "stripe", "ca_1", "To show your revenue.")
    assert app.client_secrets == (Secret("sk_test_1"),)
    assert app.scopes == ("read_write", "read_only")
    assert app.sequin_oauth_app_id == "oa_1"
    assert app.webhook_secrets == (Secret("whsec_1"), Secret("whsec_2"))
    assert app.options == StripeOptions()


def test_options_come_from_their_environment_names() -> None:
    options = load(GITHUB | {"GITHUB_API_URL": "https://ghe.acme.example/api/v3"}).apps["github"].options

    assert isinstance(options, GitHubOptions)
    assert (options.app_slug, options.app_id, options.api_url) == ("acme", 12, "https://ghe.acme.example/api/v3")
    assert options.private_key.reveal() == "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\n"


def test_a_private_key_can_be_a_mounted_pem_file(tmp_path: Path) -> None:
    pem = "-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----"
    (tmp_path / "key.pem").write_text(f"{pem}\n")
    environ = {name: value for name, value in GITHUB.items() if name != "GITHUB_PRIVATE_KEY"}

    options = load({**environ, "GITHUB_PRIVATE_KEY_FILE": str(tmp_path / "key.pem")}).apps["github"].options

    assert isinstance(options, GitHubOptions)
    assert options.private_key.reveal() == pem


def test_an_incomplete_shorthand_names_what_is_missing() -> None:
    environ = {**CORE, "STRIPE_SCOPES": "read_write"}

    assert [sentence.split(" is not set")[0] for sentence in problems(environ, base={})] == [
        "STRIPE_CLIENT_ID",
        "STRIPE_CLIENT_SECRET",
    ]
    assert problem({"GITHUB_APP_ID": "12"}).startswith(
        "GITHUB_APP_ID is set, but there is no OAuth app that reads it: set GITHUB_CLIENT_ID and GITHUB_CLIENT_SECRET"
    )


def test_a_required_option_that_is_missing_or_unusable_is_named() -> None:
    environ = {name: value for name, value in GITHUB.items() if name != "GITHUB_APP_SLUG"} | {"GITHUB_APP_ID": "twelve"}

    found = problems(environ)

    assert found[0].startswith("GITHUB_APP_SLUG is not set: the provider github needs it")
    assert found[1].startswith("GITHUB_APP_ID cannot be used: it should be a valid integer")
    assert "twelve" not in found[1]


def test_base_addresses_alone_ask_for_no_app() -> None:
    assert list(
        load({"GITHUB_URL": "https://ghe.acme.example", "GITHUB_API_URL": "https://ghe.acme.example/api"}).apps
    ) == ["stripe"]


@pytest.mark.parametrize("name", ["STRIPE_CLIENT_SECRET", "SEQUIN_API_TOKEN", "STRIPE_CLIENT_ID"])
def test_copied_values_with_a_space_or_line_break_inside_are_problems(name: str) -> None:
    assert problem({name: "abc def"}).startswith(f"{name} holds a space, a line break")


# --- OAuth apps in the TOML file ----------------------------------------------------------------------


def test_the_toml_file_holds_several_apps_in_order(toml: Toml) -> None:
    (toml.folder / "old").write_text("sk_old\n")
    settings = toml.load(
        """
        [apps.stripe-test]
        provider = "stripe"
        client_id = "ca_2"
        client_secrets = [{ env = "S_KEY" }, { file = "old" }]
        scopes = ["read_only"]
        sequin_oauth_app_id = "oa_2"
        webhook_secret = { env = "S_HOOK" }
        why = "To try it."
        api_url = "https://stripe.acme.example/"

        [apps.app]
        provider = "stripe_app"
        client_id = "ca_3"
        client_secret = { env = "S_KEY" }
        """,
        {"S_HOOK": "whsec_1,whsec_2", "STRIPE_CLIENT_ID": "ca_1", "STRIPE_CLIENT_SECRET": "sk_1"},
    )

    assert list(settings.apps) == ["stripe-test", "app", "stripe"]
    app = settings.apps["stripe-test"]
    assert app.client_secrets == (Secret("sk_test_2"), Secret("sk_old"))
    assert app.webhook_secrets == (Secret("whsec_1"), Secret("whsec_2"))
    assert (app.scopes, app.sequin_oauth_app_id, app.why) == (("read_only",), "oa_2", "To try it.")
    assert app.options == StripeOptions(api_url="https://stripe.acme.example")
    assert settings.sources["apps.app"] == "broker.toml"
    assert settings.sources["apps.stripe"] == "environment"
    assert settings.callback_url("stripe-test").endswith("/oauth/stripe-test/callback")


def test_an_option_that_the_file_leaves_out_falls_back_to_the_environment(toml: Toml) -> None:
    options = toml.load(APP, {"STRIPE_API_URL": "https://stripe.acme.example"}).apps["stripe"].options

    assert options == StripeOptions(api_url="https://stripe.acme.example")


def test_a_key_in_the_file_and_in_the_environment_is_a_problem(toml: Toml) -> None:
    assert toml.problem(APP, {"STRIPE_CLIENT_ID": "ca_1", "STRIPE_CLIENT_SECRET": "sk_1"}) == (
        "The OAuth app stripe is set up both by [apps.stripe] and by STRIPE_CLIENT_ID: "
        "remove STRIPE_CLIENT_ID and STRIPE_CLIENT_SECRET, or that table."
    )


def test_a_reference_to_a_shorthand_name_is_not_a_second_definition(toml: Toml) -> None:
    text = APP.replace("S_KEY", "STRIPE_CLIENT_SECRET")

    assert toml.load(text, {"STRIPE_CLIENT_SECRET": "sk_9"}).apps["stripe"].client_secrets == (Secret("sk_9"),)


def test_a_referenced_name_may_begin_with_broker_and_come_from_a_file(toml: Toml) -> None:
    (toml.folder / "secret").write_text("sk_5\n")
    settings = toml.load(APP.replace("S_KEY", "BROKER_STRIPE"), {"BROKER_STRIPE_FILE": str(toml.folder / "secret")})

    assert settings.apps["stripe"].client_secrets == (Secret("sk_5"),)


def test_production_refuses_secrets_in_plain_text_and_development_warns(toml: Toml) -> None:
    text = APP.replace('{ env = "S_KEY" }', '"sk_planted"') + 'webhook_secrets = ["whsec_planted"]\n'

    found = toml.problems(text)
    assert [sentence.split(":")[0] for sentence in found] == [
        "[apps.stripe] client_secret holds a secret in plain text",
        "[apps.stripe] webhook_secrets holds a secret in plain text",
    ]
    settings = toml.load(text, DEVELOPMENT)
    assert settings.apps["stripe"].client_secrets == (Secret("sk_planted"),)
    assert len(settings.warnings) == 2
    assert "planted" not in "".join((*found, *settings.warnings))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("[apps.stripe]", "[apps.Stripe]"), "[apps.Stripe] is not a usable key"),
        (
            ('provider = "stripe"', 'provider = "stripes"'),
            "[apps.stripe] names an unknown provider: did you mean stripe?",
        ),
        (('provider = "stripe"\n', ""), "[apps.stripe] does not name its provider"),
        (("client_id =", "scopes = ['a\"b']\nclient_id ="), "[apps.stripe] scopes holds a character that no scope has"),
        (
            ("client_id =", "clientid = 'x'\nclient_id ="),
            "[apps.stripe] has the unknown key clientid: did you mean client_id?",
        ),
        (
            ("client_id =", "client_secrets = []\nclient_id ="),
            "[apps.stripe] has both client_secret and client_secrets",
        ),
        (("client_secret = { env", "client_secrets = []\nwhy = { env"), "[apps.stripe] client_secrets is not set"),
        (
            ("S_KEY", "S_MISSING"),
            "[apps.stripe] client_secret refers to the environment variable S_MISSING, which is not set",
        ),
        (("S_KEY", "sk_planted"), "[apps.stripe] client_secret refers to the environment variable, which is not set"),
        (('{ env = "S_KEY" }', '{ file = "planted" }'), "[apps.stripe] client_secret names a file that cannot be read"),
        (('{ env = "S_KEY" }', '{ vault = "planted" }'), "[apps.stripe] client_secret is not a reference"),
        (('{ env = "S_KEY" }', "[]"), "[apps.stripe] client_secret is not a single value"),
        (("client_id =", "api_url = 'http://x.acme.example'\nclient_id ="), "[apps.stripe] api_url is not https"),
        (('"ca_1"', '""'), "[apps.stripe] client_id is empty"),
        (("client_id =", 'why = "a\\nb"\nclient_id ='), "[apps.stripe] why is not one line of at most 300 characters"),
    ],
)
def test_what_is_wrong_with_an_app_is_said_where_it_stands(change: tuple[str, str], expected: str, toml: Toml) -> None:
    sentence = toml.problem(APP.replace(*change))

    assert sentence.startswith(expected)
    assert "planted" not in sentence


def test_unknown_sections_and_keys_are_problems(toml: Toml) -> None:
    found = toml.problems(
        APP + "[brand]\nname='x'\n[limits]\nlink_per_second=1\n[retention]\ndays=1\n[operators]\nx=1\n"
    )

    assert [sentence.split(":")[0] for sentence in found] == [
        "The TOML file has the unknown key brand",
        "[operators] has the unknown key x",
        "[limits] has the unknown key link_per_second",
        "[retention] has the unknown key days",
    ]
    assert "did you mean links_per_second?" in found[2]


@pytest.mark.parametrize(("text", "name"), [("apps = 1", "apps"), ("limits = []", "limits"), ("apps.a = 1", "apps.a")])
def test_something_else_in_the_place_of_a_table_is_a_problem(text: str, name: str, toml: Toml) -> None:
    assert toml.problem(text, {"GITHUB_URL": ""} | (GOOD if name == "limits" else {})).startswith(
        f"{name} in the TOML file is not a table"
    )


def test_a_file_that_is_not_toml_is_a_problem_that_names_the_line(toml: Toml) -> None:
    assert toml.problem("[apps.stripe]\nclient_secret = sk_planted\n") == (
        "BROKER_CONFIG names a file that is not TOML at line 2, column 17: correct that line."
    )
    assert problem({"BROKER_CONFIG": str(toml.folder / "none.toml")}).endswith(
        "set BROKER_CONFIG to the path of the TOML file itself."
    )


def test_limits_retention_and_branding_come_from_the_file(toml: Toml) -> None:
    settings = toml.load(
        APP
        + """
        [limits]
        links_per_second = 7
        starts_per_second = 8
        flow_minutes = 1440
        link_minutes = 10080
        [retention]
        audit_days = 90
        flow_days = 1
        [branding]
        name = "Acme Ünlimited"
        logo_url = "https://acme.example/logo.svg?v=2"
        color = "#05A"
        support_email = "help@acme.example"
        support_url = "https://acme.example/help"
        privacy_url = { env = "PRIVACY" }
        [webhooks]
        private_networks = "10.20.0.0/16, fd00::7"
        """,
        {"PRIVACY": "https://acme.example/privacy"},
    )

    assert settings.limits == Limits(7, 8)
    assert (settings.flow_minutes, settings.link_minutes) == (1440, 10080)
    assert settings.retention == Retention(90, 1)
    assert settings.webhooks == Webhooks((ip_network("10.20.0.0/16"), ip_network("fd00::7/128")))
    assert settings.branding == Branding(
        "Acme Ünlimited",
        "https://acme.example/logo.svg?v=2",
        "#0055aa",
        "help@acme.example",
        "https://acme.example/help",
        "https://acme.example/privacy",
    )
    assert settings.sources["limits.flow_minutes"] == "broker.toml"


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("limits.flow_minutes = 4", "[limits] flow_minutes is not a whole number from 5 to 1440"),
        ("limits.flow_minutes = 5.5", "[limits] flow_minutes is not a whole number from 5 to 1440"),
        ("limits.link_minutes = 10081", "[limits] link_minutes is not a whole number from 1 to 10080"),
        ("limits.links_per_second = true", "[limits] links_per_second is not a whole number"),
        ("retention.audit_days = 0", "[retention] audit_days is not a whole number"),
        (
            "branding.color = '#777777'",
            "[branding] color gives white text a contrast of 4.47:1 where people need 4.5:1",
        ),
        ("branding.color = 'blue'", '[branding] color is not a colour: write for example color = "#1d4ed8".'),
        ("branding.logo_url = 'javascript:alert(1)'", "[branding] logo_url is not an http or https address"),
        ("branding.support_email = 'a@b?cc=x@y.z'", "[branding] support_email is not an e-mail address"),
        ('webhooks.private_networks = "10.0.0.1/8"', "[webhooks] private_networks is not a list of networks: write"),
        ('branding.name = "a\\nb"', "[branding] name is not one line of at most 80 characters"),
    ],
)
def test_values_of_the_file_are_checked(line: str, start: str, toml: Toml) -> None:
    assert toml.problem(f"{line}\n{APP}").startswith(start)


def test_the_palest_grey_that_white_text_can_be_read_on_is_taken(toml: Toml) -> None:
    assert toml.load(f"branding.color = '#767676'\n{APP}").branding.color == "#767676"


SIGN_IN = "issuer = 'https://id.acme.example/'\nclient_id = 'broker'\nclient_secret = { env = 'S_KEY' }\n"


def test_people_sign_in_at_an_openid_provider_where_the_file_says_so(toml: Toml) -> None:
    settings = toml.load(f"{APP}[sign_in]\n{SIGN_IN}")
    assert settings.sign_in == PeopleSignIn("https://id.acme.example/", "broker", Secret("sk_test_2"))
    assert settings.sign_in.scopes == ("openid", "email", "profile")
    assert (settings.sign_in.id_claim, settings.sign_in.name) == ("sub", "id.acme.example")
    assert settings.operators_sign_in is None


def test_values_of_the_role_claim_make_roles_of_operators(toml: Toml) -> None:
    more = "role_claim = 'groups'\nlabel = 'Acme'\nadmin = ['cn=admins,ou=acme', 'root']\nscopes = 'openid groups'\n"
    found = toml.load(f"{APP}[operators.sign_in]\n{SIGN_IN}{more}").operators_sign_in
    assert found is not None
    assert found.admin == ("cn=admins,ou=acme", "root")
    assert (found.viewer, found.operator, found.role_claim, found.name) == (
        ("viewer",),
        ("operator",),
        "groups",
        "Acme",
    )
    assert found.scopes == ("openid", "groups")


@pytest.mark.parametrize("section", ["sign_in", "operators.sign_in"])
def test_a_sign_in_that_is_begun_has_to_be_complete(section: str, toml: Toml) -> None:
    with pytest.raises(SettingsError) as raised:
        toml.load(f"{APP}[{section}]\nlabel = 'Acme'\n")
    assert [sentence.partition(" is not set:")[0] for sentence in raised.value.problems] == [
        f"[{section}] issuer", f"[{section}] client_id", f"[{section}] client_secret"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "start"),
    [
        ("issuer = 'http://id.acme.example'", "[sign_in] issuer is not https: use https"),
        ("issuer = 'https://id.acme.example/?x=1'", "[sign_in] issuer has a query: remove the ?"),
        (
            "issuer = 'https://id.acme.example/.well-known/openid-configuration'",
            "[sign_in] issuer is the address of its configuration: write what stands before",
        ),
        ("client_secret = 'plain'", "[sign_in] client_secret holds a secret in plain text: write { env"),
        ("scopes = 'email'", "[sign_in] scopes does not hold openid: write for example"),
        ("signing_algorithm = 'HS256'", "[sign_in] signing_algorithm is not one of RS256,"),
        ("signing_algorithm = 'none'", "[sign_in] signing_algorithm is not one of RS256,"),
        ("id_claim = 'two words'", "[sign_in] id_claim holds a space"),
        ("password_login = false", "[sign_in] has the unknown key password_login: remove it"),
    ],
)
def test_what_is_wrong_with_a_sign_in_is_said(line: str, start: str, toml: Toml) -> None:
    name = line.partition(" ")[0]
    rest = "".join(one for one in SIGN_IN.splitlines(keepends=True) if not one.startswith(name))
    assert toml.problem(f"{APP}[sign_in]\n{rest}{line}\n").startswith(start)


def test_operators_have_nothing_but_a_sign_in(toml: Toml) -> None:
    assert toml.problem(f"{APP}[operators]\nadmin = 'jo'\n").startswith("[operators] has the unknown key admin")


# --- secrets ------------------------------------------------------------------------------------------

PLANTED = "PLANTEDsecretVALUE0123456789abcdefghij"


def printed(error: BaseException) -> str:
    return "".join([repr(error), str(error), *traceback.format_exception(error)])


def test_nothing_printed_about_good_settings_shows_a_secret(toml: Toml) -> None:
    text = APP + "[apps.hub]\nprovider='github'\nclient_id='x'\nclient_secret={env='S_KEY'}\nprivate_key={env='PEM'}\n"
    text += "app_id=1\napp_slug='a'\nwebhook_secret={env='HOOK'}\n"
    settings = toml.load(
        text,
        {
            "BROKER_SECRET_KEY": PLANTED,
            "SEQUIN_API_TOKEN": PLANTED,
            "DATABASE_URL": f"postgresql://u:{PLANTED}@db/x",
            "BROKER_ENCRYPTION_KEYS": f"k1:{encoded(RANDOM)}",
            "S_KEY": PLANTED,
            "HOOK": PLANTED,
            "PEM": f"-----BEGIN KEY-----\\n{PLANTED}",
        },
    )

    for text in (repr(settings), str(settings), f"{settings}", repr(settings.apps), repr(settings.sources)):
        assert PLANTED not in text
        assert repr(RANDOM)[2:20] not in text
        assert encoded(RANDOM) not in text
    assert "'k1'" in repr(settings)


def test_no_problem_shows_a_value_wherever_it_was_put(toml: Toml) -> None:
    names = [one.name for one in SETTINGS]
    names += [one.name for provider, options in PROVIDERS.items() for one in app_settings(provider, options)]
    for planted in (PLANTED, f"{PLANTED} {PLANTED}", f"https://u:{PLANTED}@x", f"https://x:{PLANTED}", f"a:{PLANTED}"):
        for name in names:
            for spelt in (name, f"{name}_FILE"):
                with pytest.raises(SettingsError) as raised:
                    load_settings({spelt: planted}, PROVIDERS)
                assert PLANTED not in printed(raised.value), spelt
    everywhere = dict.fromkeys(names, PLANTED)
    with pytest.raises(SettingsError) as raised:
        load_settings(everywhere, PROVIDERS)
    assert PLANTED not in printed(raised.value)


def test_no_problem_shows_a_value_wherever_it_was_put_in_the_file(toml: Toml) -> None:
    lines = [f'{one.name} = "{PLANTED}\\n"' for one in CONFIG_SETTINGS]
    for provider, options in PROVIDERS.items():
        fields = ["client_id", "client_secret", "scopes", "sequin_oauth_app_id", "webhook_secret", "why"]
        for number, value in enumerate((f'"{PLANTED}\\n"', f'["{PLANTED}"]', f'{{ env = "{PLANTED}" }}')):
            lines.append(f'apps.{provider}{number}.provider = "{provider}"')
            lines += [f"apps.{provider}{number}.{name} = {value}" for name in (*fields, *options.model_fields)]

    for mode in ("production", "development"):
        with pytest.raises(SettingsError) as raised:
            toml.load("\n".join(lines), {"BROKER_ENV": mode})
        assert len(raised.value.problems) > 20
        assert PLANTED not in printed(raised.value)


def test_a_broken_dotenv_line_is_not_logged_with_its_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".env").write_text(f"SEQUIN_API_TOKEN='{PLANTED}\nnonsense {PLANTED}\n")

    with caplog.at_level(logging.DEBUG), pytest.raises(SettingsError) as raised:
        load_settings({}, PROVIDERS, dotenv=tmp_path / ".env")

    assert PLANTED not in caplog.text + printed(raised.value)


def test_options_built_by_hand_do_not_show_their_input_in_errors() -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        GitHubOptions(app_slug="a", app_id=PLANTED, private_key=PLANTED)  # type: ignore[arg-type]

    assert PLANTED not in printed(raised.value)


# --- the tables ---------------------------------------------------------------------------------------


def shipped() -> dict[str, type[AppOptions]]:
    return {name: provider.options for name, provider in discover().items()}


def test_the_example_file_lists_every_setting_and_nothing_else() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    listed = re.findall(r"^(# )?([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE)
    known = {one.name: one for one in SETTINGS}
    names = {name for _, name, _ in listed}
    for provider, options in shipped().items():
        # A provider that stands there stands there whole; the others are in docs/providers/.
        if f"{provider.upper()}_CLIENT_ID" in names:
            known |= {one.name: one for one in app_settings(provider, options)}

    assert sorted(name for _, name, _ in listed) == sorted(known)
    for comment, name, value in listed:
        assert value == (known[name].default or ""), name
        assert bool(comment) != (name in {one.name for one in SETTINGS if one.required}), name


def test_the_example_file_explains_every_setting_in_the_words_of_the_table() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")

    for one in SETTINGS:
        before = text[: re.search(rf"^(# )?{one.name}=", text, re.MULTILINE).start()]  # type: ignore[union-attr]
        comment = " ".join(line.removeprefix("# ") for line in before.rstrip().rpartition("\n\n")[2].splitlines())
        assert one.meaning.removesuffix(".") in comment


def test_the_example_file_copied_as_it_is_asks_for_what_is_required() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings({}, shipped(), dotenv=ROOT / ".env.example")

    assert len(raised.value.problems) == 5


def test_every_setting_says_what_it_means_and_how_to_write_it() -> None:
    for one in (*SETTINGS, *CONFIG_SETTINGS):
        assert one.meaning.endswith(".")
        assert one.example or one.secret
        assert one.advice != "correct it" or one.secret
