"""The kinds of credential: their members, which of them are secret, and what makes two imports the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

PROVIDERS = (
    "airtable",
    "auth0",
    "checkout_champ",
    "github",
    "hubspot",
    "linear",
    "marketo",
    "netsuite",
    "quickbooks",
    "salesforce",
    "sendgrid",
    "servicenow",
    "shopify",
    "stripe",
    "workday",
)
CREDENTIAL_MASK = "*" * 11
OAUTH_APP_MASK = "*" * 10
Properties = Mapping[str, object]
Reasons = dict[str, list[str]]

BLANK = "can't be blank"
INVALID = "is invalid"
MASKED = "is masked; send the value itself"


def is_mask(value: object) -> bool:
    """Tell whether a value is what an answer shows in place of a secret."""
    return isinstance(value, str) and bool(value) and not value.strip("*")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_account_type(value: object) -> bool:
    return value in ("User", "Organization")


@dataclass(frozen=True)
class Member:
    """One member of a kind's properties."""

    fits: Callable[[object], bool] = _is_text
    required: bool = True
    secret: bool = False

    def reasons(self, value: object) -> list[str]:
        """Return what is wrong with a value."""
        if value is None or value == "":
            return [BLANK] if self.required else []
        if not self.fits(value):
            return [INVALID]
        return [MASKED] if self.secret and is_mask(value) else []


TEXT, SECRET = Member(), Member(secret=True)
MAYBE_TEXT, MAYBE_SECRET = Member(required=False), Member(required=False, secret=True)
WHOLE = Member(_is_whole)


@dataclass(frozen=True)
class Kind:
    """One kind; `account` returns what stands for the upstream account."""

    provider: str
    members: Mapping[str, Member]
    account: Callable[[Properties], str]
    documented: bool = True

    def clean(self, properties: Properties) -> dict[str, object]:
        """Return the members this kind knows; others are dropped without a word."""
        return {name: properties[name] for name in self.members if properties.get(name) is not None}

    def reasons(self, properties: Properties) -> Reasons:
        """Return what is wrong, by member."""
        found = {name: member.reasons(properties.get(name)) for name, member in self.members.items()}
        return {name: reasons for name, reasons in found.items() if reasons}

    def masked(self, properties: Properties) -> dict[str, object]:
        """Return properties as every answer shows them."""
        return {
            name: CREDENTIAL_MASK if name in self.members and self.members[name].secret else value
            for name, value in properties.items()
        }


def _by(name: str) -> Callable[[Properties], str]:
    return lambda properties: str(properties.get(name))


def _hashed(properties: Properties) -> str:
    return hashlib.sha256(str(properties["secret"]).encode()).hexdigest()


def _stripe_account(properties: Properties) -> str:
    # Without an account id only the token itself can tell two connections apart.
    return f"{properties.get('stripe_user_id') or _hashed(properties)} {properties['test']}"


def _stripe_key(properties: Properties) -> str:
    return f"{_hashed(properties)} {properties['test']}"


def _instance(properties: Properties) -> str:
    # The host at Salesforce; here all orgs are on one, each below a path of its own.
    parts = urlsplit(str(properties["instance_url"]))
    return f"{parts.netloc.lower()}{parts.path.rstrip('/')}"


_STRIPE = {"secret": SECRET, "test": Member(_is_flag), "name": MAYBE_TEXT}
KINDS: Mapping[str, Kind] = {
    "stripe_key": Kind("stripe", _STRIPE, _stripe_key),
    "stripe_oauth2": Kind(
        "stripe",
        {**_STRIPE, "refresh_token": MAYBE_SECRET, "stripe_user_id": MAYBE_TEXT, "scope": MAYBE_TEXT},
        _stripe_account,
    ),
    "github_app": Kind(
        "github",
        {"account_type": Member(_is_account_type), "account_login": TEXT, "installation_id": WHOLE, "name": MAYBE_TEXT},
        _by("installation_id"),
    ),
    "github_oauth2": Kind(
        "github",
        {"access_token": SECRET, "scope": MAYBE_TEXT, "account_login": TEXT, "name": MAYBE_TEXT},
        _by("account_login"),
        documented=False,
    ),
    "airtable_oauth2": Kind(
        "airtable", {"refresh_token": SECRET, "scope": TEXT, "airtable_uid": MAYBE_TEXT}, _by("airtable_uid")
    ),
    "checkout_champ_password": Kind("checkout_champ", {"login_id": TEXT, "password": SECRET}, _by("login_id")),
    "hubspot_oauth2": Kind(
        "hubspot",
        {
            "hub_domain": TEXT,
            "hub_id": WHOLE,
            "refresh_token": SECRET,
            "scopes": Member(_is_texts),
            "hubspot_user": MAYBE_TEXT,
            "hubspot_user_id": Member(_is_whole, required=False),
            "name": MAYBE_TEXT,
        },
        _by("hub_id"),
    ),
    "linear_oauth2": Kind(
        "linear",
        {"access_token": SECRET, "scope": TEXT, "linear_org_id": TEXT, "linear_org_name": TEXT},
        _by("linear_org_id"),
    ),
    "salesforce_oauth2": Kind(
        "salesforce", {"instance_url": TEXT, "refresh_token": SECRET, "name": MAYBE_TEXT}, _instance
    ),
}
