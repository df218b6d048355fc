"""The settings as tables: they drive parsing, and `.env.example` and the documentation are held against them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from broker.settings import addresses, values
from broker.settings.model import (
    LANGUAGES,
    SIGNING_ALGORITHMS,
    AppOptions,
    Branding,
    Limits,
    OperatorSignIn,
    PeopleSignIn,
    Retention,
    Settings,
    SignIn,
    is_address,
    is_secret,
)
from broker.settings.values import Parse


@dataclass(frozen=True)
class Setting:
    """One setting: its name, what it means, and how its text becomes a value."""

    name: str
    """Environment name, or `section.key` of the TOML file."""
    meaning: str
    parse: Parse
    default: str | None = None
    """Text used when it is not set."""
    default_note: str = ""
    """Describes a default that depends on other settings."""
    example: str = ""
    """A value that would be accepted; never a secret."""
    fix: str = ""
    """What to do when a required setting is not set."""
    secret: bool = False
    several: bool = False
    """Whether the TOML file may hold a list in its place; `parse` then returns a tuple for each item."""

    @property
    def required(self) -> bool:
        """True when the broker does not start without it; in the TOML file, where its section is there at all."""
        return bool(self.fix)

    @property
    def section(self) -> str:
        """Section of the TOML file, such as `operators.sign_in`."""
        return self.name.rpartition(".")[0]

    @property
    def key(self) -> str:
        """Key within the section."""
        return self.name.rpartition(".")[2]

    @property
    def advice(self) -> str:
        """How to write it correctly; the end of a sentence."""
        if self.fix:
            return self.fix
        key = self.key
        quoted = f'"{self.example}"' if "." in self.name and not self.example.isdigit() else self.example
        equals = " = " if "." in self.name else "="
        return f"write for example {key}{equals}{quoted}" if self.example else "correct it"


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "BROKER_PUBLIC_URL",
        "The address providers and people use; callbacks, links and cookies are built from it, never from the request.",
        addresses.public_origin,
        example="https://connect.example.com",
        fix="write the address that people will open, for example https://connect.example.com",
    ),
    Setting(
        "BROKER_SECRET_KEY",
        "Signs cookies; at least 32 characters.",
        values.secret_key,
        fix=values.NEW_SECRET_KEY,
        secret=True,
    ),
    Setting(
        "BROKER_ENCRYPTION_KEYS",
        "Key ring that seals tokens, as name:base64 separated by commas; the first seals, all of them open.",
        values.key_ring,
        fix=values.NEW_ENCRYPTION_KEY,
        secret=True,
    ),
    Setting(
        "SEQUIN_API_TOKEN",
        "API token of the Sequin account that receives the credentials.",
        values.token,
        fix="create an API token in the Sequin console and put it there",
        secret=True,
    ),
    Setting(
        "SEQUIN_API_URL",
        "Address of Sequin's API.",
        addresses.base,
        default="https://api.sequin.io",
        example="https://api.sequin.io",
    ),
    Setting(
        "BROKER_ENV",
        "`production` or `development`; production refuses anything unsafe, development also takes http on loopback.",
        values.choice("production", "development"),
        default="production",
        example="production",
    ),
    Setting(
        "BROKER_CONFIG",
        "Path of a TOML file for several OAuth apps, branding, limits, retention and sign-in.",
        values.path,
        example="broker.toml",
    ),
    Setting(
        "DATABASE_URL",
        "Database: sqlite:////absolute/path or postgresql://user:password@host/name.",
        values.database_url,
        default_note="the file broker.db in DATA_DIR",
        example="postgresql://broker@localhost/broker",
        secret=True,
    ),
    Setting(
        "DATA_DIR",
        "Directory for the embedded database and what the demo generates.",
        values.directory,
        default="instance/",
        example="instance/",
    ),
    Setting("PORT", "Port the broker listens on.", values.whole(1, 65535), default="8000", example="8000"),
    Setting(
        "BROKER_RETURN_ORIGINS",
        "Origins that people may be sent back to, separated by commas.",
        addresses.origins,
        default_note="none",
        example="https://app.example.com",
    ),
    Setting(
        "BROKER_PROCESSES",
        "Processes of `broker web` where `--processes` does not say; 1 on SQLite, whose processes wait for each other.",
        values.whole(1, 64),
        default=str(Settings.processes),
        example="2",
    ),
    Setting(
        "BROKER_WORKERS",
        "Worker threads inside each web process; 0 when `broker worker` runs beside it.",
        values.whole(0, 64),
        default=str(Settings.workers),
        example="2",
    ),
    Setting(
        "BROKER_TRUSTED_PROXIES",
        "How many proxies in front of the broker set forwarding headers.",
        values.whole(0, 10),
        default=str(Settings.trusted_proxies),
        example="1",
    ),
    Setting(
        "BROKER_KEEP_GRANTS",
        "Keep sealed tokens after Sequin has verified the credential, instead of erasing them.",
        values.boolean,
        default="false",
        example="false",
    ),
    Setting(
        "BROKER_METRICS_TOKEN",
        "Bearer token with which Prometheus reads /metrics; without it there is no such page.",
        values.token,
        default_note="none",
        secret=True,
    ),
    Setting(
        "BROKER_LOG_LEVEL",
        "`DEBUG`, `INFO`, `WARNING` or `ERROR`.",
        values.choice("DEBUG", "INFO", "WARNING", "ERROR"),
        default=Settings.log_level,
        example="INFO",
    ),
    Setting(
        "BROKER_LOG_FORMAT",
        "`json` or `text`.",
        values.choice("json", "text"),
        default_note="json in production, text in development",
        example="json",
    ),
    Setting(
        "BROKER_LIMITS",
        "`off` switches rate limits off, in development only.",
        values.limits_enabled,
        default="on",
        example="on",
    ),
)
"""Every environment setting, except those of OAuth apps: see `app_settings`."""


def _sign_in(section: str, who: str, callback: str) -> tuple[Setting, ...]:
    """Return what every registration at an OpenID provider has."""
    return (
        Setting(
            f"{section}.issuer",
            f"OpenID provider at which {who} sign in, exactly as it writes its issuer.",
            addresses.issuer,
            example="https://id.example.com",
            fix="write the issuer of the OpenID provider, for example https://id.example.com",
        ),
        Setting(
            f"{section}.client_id",
            f"Client id of the broker there; the redirect address to register is `{callback}`.",
            values.identifier,
            example="oauth-broker",
            fix="register the broker at the OpenID provider and copy the client id",
        ),
        Setting(
            f"{section}.client_secret",
            "Client secret of the broker there.",
            values.token,
            fix='copy it from the OpenID provider, as { env = "NAME" } or { file = "path" }',
            secret=True,
        ),
        Setting(
            f"{section}.scopes",
            "Scopes to ask for; `openid` has to be among them.",
            values.scopes,
            default=" ".join(SignIn.scopes),
            example="openid email",
            several=True,
        ),
        Setting(
            f"{section}.label",
            "What the button calls the provider.",
            values.line(40),
            default_note="the issuer’s host",
            example="Acme",
        ),
        Setting(
            f"{section}.signing_algorithm",
            f"The one algorithm that ID tokens may be signed with: {', '.join(SIGNING_ALGORITHMS)}.",
            values.choice(*SIGNING_ALGORITHMS),
            default=SignIn.signing_algorithm,
            example=SignIn.signing_algorithm,
        ),
    )


CONFIG_SETTINGS: tuple[Setting, ...] = (
    Setting(
        "branding.name",
        "Name of the host product, on every page people see.",
        values.line(80),
        default=Branding.name,
        example="Acme Analytics",
    ),
    Setting(
        "branding.logo_url",
        "Its logo, 32 px high; on white in the dark theme.",
        addresses.link,
        example="https://www.example.com/logo.svg",
    ),
    Setting(
        "branding.color",
        "Its colour, for buttons with white text; a contrast below 4.5:1 is refused.",
        values.color,
        example="#1d4ed8",
    ),
    Setting("branding.support_email", "Where people ask for help.", values.email, example="help@example.com"),
    Setting(
        "branding.support_url", "Page where people ask for help.", addresses.link, example="https://example.com/help"
    ),
    Setting("branding.privacy_url", "The privacy notice.", addresses.link, example="https://example.com/privacy"),
    Setting(
        "branding.home_url",
        "Where people go back to when their link names no address.",
        addresses.link,
        example="https://app.example.com",
    ),
    Setting(
        "branding.theme",
        "`system`, `light` or `dark`; an address may ask for another with `?theme=dark`.",
        values.choice("system", "light", "dark"),
        default=Branding.theme,
        example="system",
    ),
    Setting(
        "branding.language",
        "`en` or `de`; an address may ask for another with `?lang=de`.",
        values.choice(*LANGUAGES),
        default_note="the language the browser prefers",
        example="de",
    ),
    Setting(
        "limits.links_per_second",
        "Connect links per second and API key, per process.",
        values.whole(1, 1_000_000),
        default=str(Limits.links_per_second),
        example="100",
    ),
    Setting(
        "limits.starts_per_second",
        "Flows started per second and address, per process.",
        values.whole(1, 1_000_000),
        default=str(Limits.starts_per_second),
        example="50",
    ),
    Setting(
        "limits.hooks_per_second",
        "Webhooks taken in per second and address, per process.",
        values.whole(1, 1_000_000),
        default=str(Limits.hooks_per_second),
        example="100",
    ),
    Setting(
        "limits.flow_minutes",
        "How long an attempt to connect may take.",
        values.whole(5, 1440),
        default=str(Settings.flow_minutes),
        example="60",
    ),
    Setting(
        "limits.link_minutes",
        "How long a connect link can be used unless its maker says otherwise.",
        values.whole(1, 10_080),
        default=str(Settings.link_minutes),
        example="30",
    ),
    Setting(
        "retention.audit_days",
        "How long the audit trail, and which webhooks were received, is kept.",
        values.whole(1, 36_500),
        default=str(Retention.audit_days),
        example="400",
    ),
    Setting(
        "retention.flow_days",
        "How long finished attempts to connect, their links and other finished work are kept.",
        values.whole(1, 3_650),
        default=str(Retention.flow_days),
        example="30",
    ),
    Setting(
        "webhooks.private_networks",
        "Networks that are not on the public internet and that webhooks may be sent to all the same.",
        addresses.networks,
        default_note="none",
        example="10.20.0.0/16",
    ),
    *_sign_in("sign_in", "people", "/sign-in/callback"),
    Setting(
        "sign_in.id_claim",
        "The claim that holds the end user’s id; it must be one that people cannot change themselves.",
        values.claim,
        default=PeopleSignIn.id_claim,
        example="sub",
    ),
    *_sign_in("operators.sign_in", "operators", "/ops/sign-in/callback"),
    Setting(
        "operators.sign_in.role_claim",
        "The claim that holds an operator’s roles or groups, as text or as a list.",
        values.claim,
        default=OperatorSignIn.role_claim,
        example="groups",
    ),
    *(
        Setting(
            f"operators.sign_in.{role}",
            f"Values of that claim that make {article} {role}; the highest role counts.",
            values.claim_values,
            default=role,
            example=f"broker-{role}s",
            several=True,
        )
        for role, article in (("viewer", "a"), ("operator", "an"), ("admin", "an"))
    ),
)
"""Every setting of the TOML file, except those of OAuth apps."""


@dataclass(frozen=True)
class AppField:
    """One field that every OAuth app has, whatever its provider."""

    name: str
    """Key in the TOML file; upper-case after the provider's name in the environment."""
    meaning: str
    parse: Parse
    """For one item, where there can be several."""
    plural: str | None = None
    """Key in the TOML file that takes an ordered list."""
    separator: re.Pattern[str] | None = None
    """What separates several items in one text."""
    example: str = ""
    fix: str = ""
    """What to do when it is missing; empty for optional fields."""
    secret: bool = False


APP_FIELDS: tuple[AppField, ...] = (
    AppField("client_id", "Client id of the OAuth app.", values.identifier, fix="copy it from the provider's console"),
    AppField(
        "client_secret",
        "Client secret of the OAuth app.",
        values.token,
        plural="client_secrets",
        fix="copy it from the provider's console",
        secret=True,
    ),
    AppField(
        "scopes",
        "Scopes to ask for, separated by commas or spaces.",
        values.scope,
        separator=re.compile(r"[,\s]+"),
        example="read_write",
    ),
    AppField("sequin_oauth_app_id", "Id of the matching OAuth app in Sequin.", values.identifier),
    AppField(
        "webhook_secret",
        "Verifies the provider's webhooks, where they are read; several, separated by commas, while you rotate it.",
        values.token,
        plural="webhook_secrets",
        separator=re.compile(r"[,\s]+"),
        secret=True,
    ),
    AppField("why", "One sentence for people: what you use the connection for.", values.line(300)),
)


def prefixed(provider: str, field: str) -> str:
    """Return the environment name of a provider's field."""
    return f"{provider}_{field}".upper().replace("-", "_")


def option_env(provider: str, name: str, option: FieldInfo) -> str:
    """Return the environment name of a provider's option."""
    extra = option.json_schema_extra
    chosen = extra.get("env") if isinstance(extra, dict) else None
    return chosen if isinstance(chosen, str) else prefixed(provider, name)


def app_settings(provider: str, options: type[AppOptions]) -> tuple[Setting, ...]:
    """Return the environment shorthand for one OAuth app of a provider: the common fields, then its options."""
    common = tuple(
        Setting(
            prefixed(provider, field.name),
            field.meaning,
            field.parse,
            example=field.example,
            fix=field.fix,
            secret=field.secret,
        )
        for field in APP_FIELDS
    )
    return common + tuple(_option_setting(provider, name, option) for name, option in options.model_fields.items())


def _option_setting(provider: str, name: str, option: FieldInfo) -> Setting:
    shown: Any = option.get_default(call_default_factory=False)
    usual = "Base address." if is_address(option) else "Option of this provider."
    has_default = not option.is_required() and shown is not None and not is_secret(option)
    return Setting(
        option_env(provider, name, option),
        option.description or usual,
        values.identifier,
        default=_text(shown) if has_default else None,
        fix="copy it from the provider's console" if option.is_required() else "",
        secret=is_secret(option),
    )


def _text(value: Any) -> str:
    """Return a default the way it is written in the environment."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
