"""The people and organisations of the GitHub stand-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

ADMIN, MEMBER = "admin", "member"


@dataclass(frozen=True)
class Org:
    """An organisation."""

    id: int
    login: str


@dataclass
class User:
    """A person; `orgs` maps an organisation's login to this person's role in it."""

    id: int
    login: str
    name: str | None = None
    email: str | None = None
    about: str = ""
    orgs: dict[str, str] = field(default_factory=dict)

    def resource(self) -> dict[str, object]:
        """Return the API's user object."""
        return {**account(self.id, self.login, "User"), "name": self.name, "email": self.email}


@dataclass
class Installation:
    """The App installed on one account."""

    id: int
    account_id: int
    account_login: str
    account_type: str
    created_at: datetime
    suspended_at: datetime | None = None


def account(number: int, login: str, kind: str) -> dict[str, object]:
    """Return the API's short form of a user or an organisation."""
    return {"login": login, "id": number, "node_id": f"N_{number}", "type": kind, "site_admin": False}


def starting_orgs() -> list[Org]:
    """Return the made-up organisations."""
    return [Org(90_001, "tidewater-coop"), Org(90_002, "globex-pottery")]


def starting_users() -> list[User]:
    """Return the made-up people, the default first."""
    return [
        User(70_001, "octo-jo", "Jo Octo", "jo@octo.example", "no installation yet", {"tidewater-coop": ADMIN}),
        User(70_002, "solo-sam", "Sam Solo", None, "one installation"),
        User(70_003, "many-mona", "Mona Many", "mona@many.example", "two installations", {"globex-pottery": ADMIN}),
        User(
            70_004,
            "member-max",
            None,
            None,
            "only a member, of two organisations",
            {"globex-pottery": MEMBER, "tidewater-coop": MEMBER},
        ),
        User(70_005, "paused-pat", "Pat Paused", None, "one installation, suspended"),
    ]


# Which of the above have the App from the start: (account login, suspended).
STARTING_INSTALLATIONS = (("solo-sam", False), ("many-mona", False), ("globex-pottery", False), ("paused-pat", True))
