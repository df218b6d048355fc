"""The Stripe accounts that can be picked, and how the API shows one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from broker.sandbox.secrets import alphanumeric

FOUNDED = 1_700_000_000


@dataclass(frozen=True)
class Account:
    """One account. Everything but the id may be missing, as it may at Stripe."""

    id: str
    name: str | None
    email: str | None = None
    country: str = "IE"
    currency: str = "eur"
    dashboard_name: str | None = None
    created: int = FOUNDED
    # Another platform controls it: Connect cannot attach to it, and nobody but its owner can end an access.
    controlled: bool = False

    @property
    def label(self) -> str:
        """Return what people know it by."""
        return self.dashboard_name or self.name or self.email or self.id

    def resource(self) -> dict[str, object]:
        """Return the API's account object."""
        return {
            "id": self.id,
            "object": "account",
            "business_profile": {"mcc": None, "name": self.name, "url": None},
            "charges_enabled": True,
            "country": self.country,
            "created": self.created,
            "default_currency": self.currency,
            "details_submitted": True,
            "email": self.email,
            "payouts_enabled": True,
            "settings": {"dashboard": {"display_name": self.dashboard_name, "timezone": "Etc/UTC"}},
            "type": "standard",
        }


def starting_accounts() -> list[Account]:
    """Return the made-up accounts that are always there."""
    return [
        Account("acct_1NorthwindCoffee0", "Northwind Coffee", "jo@northwind.example", "IE", "eur", "Northwind Coffee"),
        Account("acct_1GlobexPottery000", "Globex Pottery", "kiln@globex.example", "US", "usd", "Globex Pottery"),
        # Without a dashboard name, and one with nothing but an id: names are optional at Stripe.
        Account("acct_1TidewaterBooks00", "Tidewater Books", None, "GB", "gbp"),
        Account("acct_1NamelessStore000", None, None, "DE"),
        Account(
            "acct_1HarbourMarket00", "Harbour Market Stall", dashboard_name="Harbour Market Stall", controlled=True
        ),
    ]


def new_account(now: datetime, account_id: str | None = None) -> Account:
    """Make an account that nobody has seen before."""
    number = alphanumeric(6).upper()
    name = f"New Account {number}"
    return Account(
        account_id or f"acct_1{alphanumeric(15)}",
        name,
        f"owner-{number.lower()}@new.example",
        dashboard_name=name,
        created=int(now.timestamp()),
    )
