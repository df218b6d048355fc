"""Stripe's webhooks: which signatures count, and what an event means."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from broker.providers.base import Notice, NoticeKind, WebhookInvalid, WebhookRefused
from broker.providers.stripe_api import verify, webhook
from broker.secret import Secret
from tests.house import START, stripe_app
from tests.providers.cases import CASES
from tests.providers.stripe import stripe_signs

SECRET = Secret("whsec_test")
APP = replace(stripe_app("stripe"), webhook_secrets=(SECRET,))
# providers.md, 1d: made with Stripe's own library.
BODY = b'{"id":"evt_1","object":"event"}'
STAMP = 1_700_000_000
SIGNATURE = "4c15fb2a43f93ef61eaa3e0893866d57cad9cad4223242cfb96f362480cb4021"
THEN = datetime.fromtimestamp(STAMP, UTC)


def hear(**changes: Any) -> Notice:
    event = {name: value for name, value in {**CASES["stripe"].event, **changes}.items() if value is not ...}
    body = json.dumps(event).encode()
    return webhook(APP, stripe_signs(body, SECRET, START), body, START)


def test_the_published_example_is_accepted() -> None:
    verify(f"t={STAMP},v1={SIGNATURE}", BODY, (SECRET,), THEN)


@pytest.mark.parametrize(
    "header",
    [
        f"t={STAMP},v1={'0' * 64},v1={SIGNATURE}",
        f"t={STAMP}, v1={SIGNATURE}",
        f"t={STAMP},v0=whatever,v1={SIGNATURE},v2=other",
    ],
)
def test_any_of_several_signatures_will_do(header: str) -> None:
    verify(header, BODY, (Secret("whsec_next"), SECRET), THEN)


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"v1={SIGNATURE}",
        f"t={STAMP}",
        f"t={STAMP},v1=",
        f"t={STAMP},v0={SIGNATURE}",
        f"t={STAMP + 1},v1={SIGNATURE}",
        f"t={STAMP},t={STAMP},v1={SIGNATURE}",
        f"t={STAMP},v1={SIGNATURE.upper()}",
        f"t=-{STAMP},v1={SIGNATURE}",
        f"t=1_700_000_000,v1={SIGNATURE}",
        f"t=１７００００００００,v1={SIGNATURE}",
        f"t={STAMP},v1=é",
    ],
)
def test_everything_else_is_refused(header: str) -> None:
    with pytest.raises(WebhookRefused):
        verify(header, BODY, (SECRET,), THEN)


def test_five_minutes_is_how_old_a_signature_may_be() -> None:
    header = f"t={STAMP},v1={SIGNATURE}"
    verify(header, BODY, (SECRET,), THEN + timedelta(seconds=300))
    # A clock ahead of ours is no replay.
    verify(header, BODY, (SECRET,), THEN - timedelta(hours=1))
    with pytest.raises(WebhookRefused):
        verify(header, BODY, (SECRET,), THEN + timedelta(seconds=301))


def test_a_deauthorization_is_about_the_account_at_the_top() -> None:
    notice = hear(account="acct_7", livemode=True, created=STAMP)
    assert notice == Notice(
        kind=NoticeKind.REVOKED,
        name="account.application.deauthorized",
        delivery_id="evt_1",
        account_id="acct_7",
        mode="live",
        occurred_at=THEN,
    )


def test_a_changed_account_is_asked_about() -> None:
    assert hear(type="account.updated").kind is NoticeKind.CHANGED


@pytest.mark.parametrize("account", [..., None, "", 7, "ca_1", {"id": "acct_1"}])
def test_an_event_that_names_no_account_means_nothing(account: object) -> None:
    assert hear(account=account).kind is NoticeKind.NOTHING


def test_other_events_mean_nothing() -> None:
    assert hear(type="invoice.paid").kind is NoticeKind.NOTHING


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ...}, {"id": ""}, {"id": "e" * 200}, {"id": "evt 1"}, {"type": ...}, {"type": 7}, {"livemode": ...},
        {"livemode": "true"}, {"created": ...}, {"created": "now"}, {"created": -1}, {"created": 10**18},
    ],
)  # fmt: skip
def test_a_signed_body_that_is_no_event_is_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(WebhookInvalid):
        hear(**changes)
