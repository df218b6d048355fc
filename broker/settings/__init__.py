"""Every setting, typed: read once at start, all problems reported together, each with its fix; secrets masked.

The tables in `table.py` drive parsing, `.env.example` and the documentation. No sentence made here ever quotes a
value, because a secret pasted into the wrong setting must not reach a terminal or a log either.
"""

from broker.settings.load import load_settings
from broker.settings.model import (
    LANGUAGES,
    AppOptions,
    Branding,
    HttpAddress,
    Limits,
    OAuthApp,
    OperatorSignIn,
    PeopleSignIn,
    Retention,
    Settings,
    SignIn,
    Webhooks,
)
from broker.settings.table import CONFIG_SETTINGS, SETTINGS, Setting, app_settings
from broker.settings.values import EncryptionKey, generate_key, one_key

__all__ = [
    "CONFIG_SETTINGS",
    "LANGUAGES",
    "SETTINGS",
    "AppOptions",
    "Branding",
    "EncryptionKey",
    "HttpAddress",
    "Limits",
    "OAuthApp",
    "OperatorSignIn",
    "PeopleSignIn",
    "Retention",
    "Setting",
    "Settings",
    "SignIn",
    "Webhooks",
    "app_settings",
    "generate_key",
    "load_settings",
    "one_key",
]
