"""No secret leaves by accident: not printed, not formatted, not encoded, not pickled, not in a traceback."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from collections.abc import Callable
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import pytest
from flask.json.provider import DefaultJSONProvider
from jinja2 import Environment

from broker.apps import AppCatalogue
from broker.attach import Attachment
from broker.callback import CallbackAnswer, SetupAnswer
from broker.journal import Browser, Received
from broker.oauth import Departure, Grant, OAuthProfile
from broker.providers import discover
from broker.providers.base import Account
from broker.secret import Secret, digest
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.connecting import github_app
from tests.house import START, make_settings, stripe_app

S = "SENTINEL"
SECRET = Secret(S)


def app(**changes: Any) -> Any:
    return replace(stripe_app("stripe"), client_secrets=(SECRET,), webhook_secrets=(SECRET,), **changes)


def holders() -> dict[str, object]:
    """Return one of everything that carries a secret about."""
    grant = Grant(SECRET, SECRET, "bearer", ("a",), START, None, {"id_token": S, "nested": {"token": S}})
    settings = make_settings(
        f"postgresql://u:{S}@db/x", secret_key=SECRET, sequin_api_token=SECRET,
        encryption_keys=(EncryptionKey("k1", S.encode() * 4),),
        apps={"stripe": app(), "github": github_app(private_key=SECRET)},
    )  # fmt: skip
    profile: OAuthProfile = discover()["stripe"].profile(app())
    offered = AppCatalogue(settings.apps, discover()).get("stripe")
    account = Account("acct_1", "Acme", None, "live")
    return {
        "Secret": SECRET,
        "Grant": grant,
        "CallbackAnswer": CallbackAnswer(SECRET, SECRET, None, "", None),
        "SetupAnswer": SetupAnswer(SECRET, None, "request"),
        "Departure": Departure(f"https://provider.example/?state={S}", SECRET, SECRET),
        "Settings": settings,
        "OAuthApp": app(),
        "OfferedApp": offered,
        "OAuthProfile": profile,
        "EncryptionKey": EncryptionKey("k1", S.encode() * 4),
        "Vault": Vault((EncryptionKey("k1", S.encode() * 4),)),
        "Browser": Browser(SECRET),
        "Received": Received({"access_token": S}, START),
        "Attachment": Attachment(1, "ref", offered, account, grant, START),
    }


SHOWN: dict[str, Callable[[object], str]] = {
    "repr": repr,
    "str": str,
    "f-string": lambda value: f"{value} {value!r:>40}",
    "padded": lambda value: f"{value:>40}" if isinstance(value, Secret) else "",
    "percent": lambda value: "%s %r" % (value, value),  # noqa: UP031 - loggers do this
    "nested": lambda value: repr([value, {"a": value}, (value,)]),
    "template": lambda value: Environment(autoescape=True).from_string("{{ it }} {{ it|string }}").render(it=value),
    "JSON of its str": lambda value: json.dumps({"value": value}, default=str),
    "JSON of its repr": lambda value: json.dumps({"value": value}, default=repr),
}


@pytest.mark.parametrize("name", sorted(holders()))
@pytest.mark.parametrize("show", SHOWN.values(), ids=SHOWN)
def test_nothing_that_holds_a_secret_shows_it(name: str, show: Callable[[object], str]) -> None:
    shown = show(holders()[name])
    assert S not in shown
    assert digest(S) not in shown


# `Received` is the raw answer on purpose, on its way to be sealed; no view ever gets one.
@pytest.mark.parametrize("name", sorted(set(holders()) - {"Received"}))
@pytest.mark.parametrize("default", [None, DefaultJSONProvider.default])
def test_json_refuses_it_or_keeps_it(name: str, default: Callable[[object], object] | None) -> None:
    try:
        encoded = json.dumps(holders()[name], default=default)
    except TypeError as refusal:
        encoded = str(refusal)
    assert S not in encoded


@pytest.mark.parametrize("name", sorted({"Secret", "Grant", "CallbackAnswer", "Departure", "Settings", "Browser"}))
@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy])
def test_it_cannot_be_pickled(name: str, copied: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="pickle"):
        copied(holders()[name])


def test_a_plain_dictionary_of_it_still_shows_nothing() -> None:
    for name, holder in holders().items():
        if not is_dataclass(holder) or isinstance(holder, type) or name in {"Grant", "EncryptionKey", "Received"}:
            # These hold raw material on purpose, for sealing; they are never turned into dictionaries.
            continue
        try:
            shown = repr(asdict(holder))
        except TypeError as refusal:
            shown = str(refusal)
        assert S not in shown


def test_a_traceback_shows_nothing() -> None:
    def fail(value: object) -> None:
        raise ValueError(value)

    for holder in holders().values():
        with pytest.raises(ValueError, match=r".*") as caught:
            fail(holder)
        assert S not in "".join(traceback.format_exception(caught.value))
        plain = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        assert S not in "".join(plain.format())


def test_the_one_who_asks_by_name_gets_it() -> None:
    assert SECRET.reveal() == S
    assert Secret(S) == SECRET
    assert Secret("other") != SECRET
    assert SECRET != S
    assert len({SECRET, Secret(S)}) == 1
    assert (bool(Secret("")), len(SECRET)) == (False, 8)
