"""The settings page: every value with where it comes from, and no secret."""

from __future__ import annotations

import re
from dataclasses import replace
from types import MappingProxyType

from flask import Flask

from broker.models import Role
from broker.operators import Operators
from broker.settings import CONFIG_SETTINGS, SETTINGS
from broker.web.console.settings import shown
from tests.house import make_settings
from tests.openid import people, staff
from tests.web.test_console import signed_in, text_of


def test_every_setting_is_shown_and_no_secret(app: Flask, operators: Operators) -> None:
    settings = app.extensions["broker"].settings
    page = text_of(signed_in(app, operators, Role.VIEWER).get("/ops/settings"))
    for setting in (*SETTINGS, *CONFIG_SETTINGS):
        assert setting.name in page
    for secret in (settings.secret_key.reveal(), settings.sequin_api_token.reveal(), settings.database_url):
        assert secret not in page
    assert settings.public_url in page


def test_only_what_is_read_once_has_no_value_to_show() -> None:
    sources = MappingProxyType({setting.name: "environment" for setting in (*SETTINGS, *CONFIG_SETTINGS)})
    settings = make_settings("sqlite:////tmp/x.db", sign_in=people(), operators_sign_in=staff())
    found = shown(replace(settings, sources=sources))
    secrets = {setting.name for setting in (*SETTINGS, *CONFIG_SETTINGS) if setting.secret}
    assert {each.name for each in found if each.value == "Set, not shown"} == secrets
    assert {each.name for each in found if each.value == "Set"} == {"BROKER_CONFIG"}


def test_each_value_says_where_it_comes_from() -> None:
    sources = MappingProxyType({"PORT": "environment", "branding.name": "broker.toml", "SEQUIN_API_TOKEN": "file"})
    found = {each.name: each for each in shown(replace(make_settings("sqlite:////tmp/x.db"), sources=sources))}
    assert found["PORT"].source == "Environment"
    assert found["branding.name"].source == "broker.toml"
    assert found["SEQUIN_API_TOKEN"].source == "File named by _FILE"
    assert found["limits.flow_minutes"].source == "Default"
    assert re.fullmatch("On|Off", found["BROKER_LIMITS"].value)
