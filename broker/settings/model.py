"""What the rest of the broker sees: frozen values that print without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from broker.secret import Secret
from broker.settings import addresses
from broker.settings.report import Report
from broker.settings.values import EncryptionKey


def _base_address(text: str, info: ValidationInfo) -> str:
    """Check the form always, and the rules of the environment when settings are loaded."""
    report = info.context if isinstance(info.context, Report) else None
    return addresses.base(text, report)


_IS_ADDRESS = AfterValidator(_base_address)

HttpAddress = Annotated[str, _IS_ADDRESS]
"""An option that holds a base address: no query, no trailing slash; https, except on loopback in development."""


LANGUAGES: Mapping[str, str] = MappingProxyType({"en": "English", "de": "Deutsch"})
"""The languages of the pages, each by its own name."""


class AppOptions(BaseModel):
    """What a provider needs besides the fields that every OAuth app has; each provider's file has its subclass.

    A field's environment name is `<PROVIDER>_<FIELD>` unless it carries `json_schema_extra={"env": "NAME"}`; its
    `description` is its meaning in the documentation. Fields of type `Secret` take text, and PEM on one line with
    `\\n`; tuples take text separated by commas; fields of type `HttpAddress` are base addresses.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, arbitrary_types_allowed=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _from_text(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str) or info.field_name is None:
            return value
        option = cls.model_fields[info.field_name]
        several = get_origin(option.annotation) in (tuple, list, frozenset)
        if is_secret(option):
            return [_secret(part) for part in _split(value)] if several else _secret(value)
        return _split(value) if several else value


def _split(text: str) -> list[str]:
    return [part for part in re.split(r"[,\s]+", text) if part]


def _secret(text: str) -> Secret:
    pem = text.startswith("-----BEGIN")
    return Secret(text.replace("\\r", "").replace("\\n", "\n") if pem else text)


def is_secret(option: FieldInfo) -> bool:
    """Tell whether an option holds a secret."""
    return _mentions(option.annotation, Secret)


def is_address(option: FieldInfo) -> bool:
    """Tell whether an option holds a base address."""
    return _IS_ADDRESS in option.metadata or _mentions(option.annotation, _IS_ADDRESS)


def _mentions(annotation: Any, wanted: object) -> bool:
    return annotation is wanted or any(_mentions(part, wanted) for part in get_args(annotation))


@dataclass(frozen=True)
class OAuthApp:
    """One registration at a provider."""

    key: str
    """Short name in addresses and in the API, such as `stripe` or `stripe-test`."""
    provider: str
    client_id: str
    client_secrets: tuple[Secret, ...]
    """Never empty; the first is used, the others are the ones it replaces."""
    scopes: tuple[str, ...]
    """What to ask for; empty means the provider's default."""
    sequin_oauth_app_id: str | None
    """The matching OAuth app in Sequin, when pinned."""
    webhook_secrets: tuple[Secret, ...]
    """Any of these verifies a webhook; several during a rotation."""
    why: str
    """One sentence for people: what the connection is used for. May be empty."""
    options: AppOptions


SIGNING_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")
"""What an ID token may be signed with: keys in pairs alone, so that nobody who can verify can also sign."""


@dataclass(frozen=True)
class SignIn:
    """Our registration at an OpenID provider."""

    issuer: str
    """Exactly as the provider writes it, a slash at the end included."""
    client_id: str
    client_secret: Secret
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    label: str | None = None
    """What its button calls it; none means the issuer's host."""
    signing_algorithm: str = "RS256"
    """The one algorithm an ID token may be signed with."""

    @property
    def name(self) -> str:
        """What people know it by."""
        return self.label or self.issuer.partition("://")[2].partition("/")[0]


@dataclass(frozen=True)
class PeopleSignIn(SignIn):
    """Where end users sign in, when no host sends them."""

    id_claim: str = "sub"
    """The claim that holds the end user's id."""


@dataclass(frozen=True)
class OperatorSignIn(SignIn):
    """Where operators sign in, besides by password."""

    role_claim: str = "roles"
    """The claim that holds roles or groups."""
    viewer: tuple[str, ...] = ("viewer",)
    """Values of that claim that make a viewer; likewise below. The highest role counts."""
    operator: tuple[str, ...] = ("operator",)
    admin: tuple[str, ...] = ("admin",)


@dataclass(frozen=True)
class Limits:
    """Rate limits, counted per process."""

    links_per_second: int = 100
    """Connect links made with one API key."""
    starts_per_second: int = 50
    """Flows started from one address."""
    hooks_per_second: int = 100
    """Webhooks taken in from one address."""
    enabled: bool = True
    """False only in development, for benchmarks."""


@dataclass(frozen=True)
class Branding:
    """How end-user pages present the host product."""

    name: str = "the application"
    logo_url: str | None = None
    color: str | None = None
    """#rrggbb that white text can be read on; none means the stylesheet's own."""
    support_email: str | None = None
    support_url: str | None = None
    privacy_url: str | None = None
    home_url: str | None = None
    """Where people go back to when their link names no address."""
    theme: Literal["system", "light", "dark"] = "system"
    """Unless an address asks for another."""
    language: str | None = None
    """One of LANGUAGES, unless an address asks for another; none means the one the browser prefers."""


@dataclass(frozen=True)
class Retention:
    """How long records are kept before they are purged."""

    audit_days: int = 400
    flow_days: int = 30


@dataclass(frozen=True)
class Webhooks:
    """Where webhooks may be sent."""

    private_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """What is not on the public internet and may be sent to all the same."""


@dataclass(frozen=True)
class Settings:
    """Everything this deployment decided, checked. Made by `load_settings`."""

    public_url: str
    """Origin without a trailing slash; every callback, link and cookie decision is built from it."""
    secret_key: Secret
    encryption_keys: tuple[EncryptionKey, ...]
    """Never empty; the first seals, all open."""
    environment: Literal["production", "development"]
    database_url: str = field(repr=False)
    """As SQLAlchemy takes it; may hold a password."""
    data_dir: Path
    port: int
    sequin_api_token: Secret
    sequin_api_url: str
    apps: Mapping[str, OAuthApp]
    """By key, in the order in which they were written down."""
    return_origins: tuple[str, ...] = ()
    processes: int = 1
    workers: int = 2
    trusted_proxies: int = 0
    keep_grants: bool = False
    metrics_token: Secret | None = None
    """What a reader of /metrics must bring; None means that nobody may read it."""
    log_level: str = "INFO"
    log_format: Literal["json", "text"] = "json"
    limits: Limits = Limits()
    branding: Branding = Branding()
    retention: Retention = Retention()
    webhooks: Webhooks = Webhooks()
    sign_in: PeopleSignIn | None = None
    """None means that people come by links alone."""
    operators_sign_in: OperatorSignIn | None = None
    """None means that operators sign in by password alone."""
    flow_minutes: int = 60
    link_minutes: int = 30
    sources: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Where each setting came from: `environment`, `.env`, `file`, `broker.toml` or `default`."""
    warnings: tuple[str, ...] = ()
    """Sentences to log at start: what development let pass, and names that look misspelt."""

    @property
    def production(self) -> bool:
        """True unless this is a development set-up."""
        return self.environment == "production"

    @property
    def secure_cookies(self) -> bool:
        """True when cookies carry Secure and the `__Host-` prefix."""
        return self.public_url.startswith("https://")

    def callback_url(self, app_key: str) -> str:
        """Return the redirect address to register at the provider for this OAuth app.

        Raises:
            KeyError: there is no such OAuth app.
        """
        return f"{self.public_url}/oauth/{self.apps[app_key].key}/callback"

    @property
    def sign_in_callback_url(self) -> str:
        """The redirect address to register for `[sign_in]`."""
        return f"{self.public_url}/sign-in/callback"

    @property
    def operators_callback_url(self) -> str:
        """The redirect address to register for `[operators.sign_in]`."""
        return f"{self.public_url}/ops/sign-in/callback"

    def hook_url(self, app_key: str) -> str:
        """Return the address to register at the provider for this OAuth app's webhooks.

        Raises:
            KeyError: there is no such OAuth app.
        """
        return f"{self.public_url}/hooks/{self.apps[app_key].key}"

    def setup_url(self, app_key: str) -> str:
        """Return the address a provider sends people to after an installation (GitHub's Setup URL).

        Raises:
            KeyError: there is no such OAuth app.
        """
        return f"{self.public_url}/oauth/{self.apps[app_key].key}/setup"
