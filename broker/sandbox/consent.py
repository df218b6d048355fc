"""Who answers the consent pages: a person, or the script."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from broker.sandbox.faults import Unscripted


@dataclass(frozen=True)
class Consent:
    """`auto` is "allow", "deny" or None (a person decides); `account` pins who consents."""

    auto: str | None = None
    account: str | None = None

    @property
    def stripe_account(self) -> str | None:
        """The pinned Stripe account id, if the pin is one."""
        return self.account if self.account and self.account.startswith("acct_") else None

    @property
    def github_login(self) -> str | None:
        """The pinned GitHub login, if the pin is one."""
        return self.account if self.account and not self.account.startswith("acct_") else None


def parse_consent(asked: Mapping[str, object]) -> Consent:
    """Read a control request. Raises Unscripted."""
    unknown = sorted(set(asked) - {"auto", "account"})
    if unknown:
        raise Unscripted(f"Unknown member {unknown[0]!r}; a consent has auto and account.")
    auto, account = asked.get("auto"), asked.get("account")
    if auto is not None and auto not in ("allow", "deny"):
        raise Unscripted(f"'auto' is {auto!r} but must be allow, deny or null.")
    if account is not None and (not isinstance(account, str) or not account.strip()):
        raise Unscripted("'account' must be a Stripe account id (acct_…) or a GitHub login.")
    return Consent(auto=str(auto) if auto else None, account=account)
