"""No token, code, verifier or key of ours in the database, on the pages or in the logs, whatever goes wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, quote, urlsplit

import pytest
import requests
import sqlalchemy as sa

from tests.e2e.world import Person, World, eventually

TOKEN_PATHS = ("/stripe/oauth/token", "/github/login/oauth/access_token")
TOKENS = ("access_token", "refresh_token")
SECRET_SETTINGS = (
    "BROKER_SECRET_KEY",
    "STRIPE_CLIENT_SECRET",
    "STRIPE_WEBHOOK_SECRET",
    "GITHUB_CLIENT_SECRET",
    "GITHUB_WEBHOOK_SECRET",
    "SEQUIN_API_TOKEN",
)
Haystack = list[tuple[str, bytes]]


# --- what to look for ---------------------------------------------------------------------------------


def spellings(value: bytes) -> set[bytes]:
    """Return the forms in which a value could stand somewhere: as it is, quoted, in hex, in Base64 at any offset."""
    found = {
        value,
        quote(value).encode(),
        quote(value, safe="").encode(),
        json.dumps(value.decode("latin-1"))[1:-1].encode(),
    }
    found |= {value.hex().encode(), value.hex().upper().encode()}
    for offset in range(3):
        # The characters that depend on nothing but the value: without the first and last group.
        body = base64.b64encode(bytes(offset) + value)[4 if offset else 0 :]
        body = body[: len(body) // 4 * 4 - 4]
        found |= {body, body.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in found if len(form) >= 8}


def of_the_stand_ins(world: World) -> dict[str, set[str]]:
    """Return every secret that travelled between the broker and the stand-ins."""
    found: dict[str, set[str]] = {"token": set(), "code": set(), "verifier": set(), "state": set()}
    for entry in world.control("log")["data"]:
        query = dict(parse_qsl(entry["query"]))
        if "state" in query:
            found["state"].add(query["state"])
        if entry["path"] not in TOKEN_PATHS:
            continue
        sent = dict(parse_qsl(entry["body"]))
        found["code"].add(sent["code"])
        if "code_verifier" in sent:
            found["verifier"].add(sent["code_verifier"])
        try:
            answer = json.loads(entry["response"] or "")
        except ValueError:
            continue
        found["token"] |= {
            answer[name] for name in ("access_token", "refresh_token") if isinstance(answer.get(name), str)
        }
    for grant in world.control("state")["grants"]:
        found["token"] |= {grant[name] for name in TOKENS if grant[name]}
    return found


def of_the_settings(world: World) -> dict[str, set[bytes]]:
    """Return our own keys and secrets, the raw bytes of the encryption key included."""
    key = world.environment["BROKER_ENCRYPTION_KEYS"].partition(":")[2]
    pem = [line for line in world.environment["GITHUB_PRIVATE_KEY"].splitlines() if "-----" not in line]
    found = {name: {world.environment[name].encode()} for name in SECRET_SETTINGS}
    assert len(pem) > 20
    return found | {
        "BROKER_ENCRYPTION_KEYS": {key.encode(), base64.b64decode(key)},
        "GITHUB_PRIVATE_KEY": {line.encode() for line in pem if len(line) >= 32},
    }


# --- where to look ------------------------------------------------------------------------------------


def stored(world: World) -> Haystack:
    """Return everything the database holds: SQLite's files as they are, PostgreSQL's tables row by row."""
    if world.database_url.startswith("sqlite"):
        file = Path(str(sa.make_url(world.database_url).database))
        parts = sorted(file.parent.glob(f"{file.name}*"))
        assert any(part.name.endswith("-wal") for part in parts)
        return [(part.name, part.read_bytes()) for part in parts]
    with world.database() as connection:
        tables = sa.inspect(connection).get_table_names()
        return [
            (f"table {table}", b"\n".join(_flat(connection.execute(sa.text(f'SELECT * FROM "{table}"')))))  # noqa: S608
            for table in tables
        ]


def _flat(rows: Iterable[sa.Row[tuple[object, ...]]]) -> Iterator[bytes]:
    for row in rows:
        for value in row:
            if isinstance(value, dict | list):
                yield json.dumps(value, ensure_ascii=False).encode()
            else:
                yield value if isinstance(value, bytes) else str(value).encode()


def logged(world: World) -> Haystack:
    """Return the logs of our own processes; the sandbox's is the other side's."""
    return [(path.name, path.read_bytes()) for path in world.folder.glob("*.log") if "sandbox" not in path.name]


def shown(world: World, people: Iterable[Person]) -> Haystack:
    """Return every page of ours that anybody saw, headers included."""
    return [
        (f"{answer.request.method} {urlsplit(answer.url).path}", _headers(answer) + answer.content)
        for person in people
        for answer in person.seen
        if answer.url.startswith(world.url)
    ]


def _headers(answer: requests.Response) -> bytes:
    return "".join(f"{name}: {value}\n" for name, value in answer.headers.items()).encode()


def search(haystack: Haystack, secrets: dict[str, set[bytes]]) -> list[str]:
    """Return what was found where, without repeating it."""
    return sorted(
        f"{kind} in {place}"
        for kind, values in secrets.items()
        for value in values
        for form in spellings(value)
        for place, content in haystack
        if form in content
    )


# --- faulty runs --------------------------------------------------------------------------------------


def a_day_on_which_everything_goes_wrong(world: World, end_user: str) -> list[Person]:
    """Let people connect while tokens, codes and verifiers come back at us in every error there is."""
    people = [Person(world) for _ in range(8)]

    # Well, to begin with.
    people[0].connect(world.link(f"{end_user}-0"), "stripe")
    people[1].connect(world.link(f"{end_user}-1"), "github")
    people[0].get("/connections")

    # The provider quotes the code and our secret in its error, as a code, as a text and as a page.
    for person, body, status in (
        (people[2], '{{"error": "invalid_grant", "error_description": "code {code} was used, says {secret}"}}', 400),
        (people[3], '{{"error": "{code}", "error_description": "{secret}"}}', 400),
        (people[4], "<html><h1>{code}</h1><p>{secret}</p>", 500),
    ):
        callback = person.come_back(world.link(f"{end_user}-{people.index(person)}"), "stripe")
        code = parse_qs(urlsplit(callback).query)["code"][0]
        quoted = body.format(code=code, secret=world.environment["STRIPE_CLIENT_SECRET"])
        world.fault("stripe.token", "status", status=status, body=quoted, times=1)
        person.follow(person.get(callback))
    callback = people[2].come_back(world.link(f"{end_user}-2"), "github")
    world.fault("github.token", "truncate", when="after", times=1)
    people[2].follow(people[2].get(callback))
    callback = people[3].come_back(world.link(f"{end_user}-3"), "github")
    world.fault("github.token", "reset", when="after", times=1)
    people[3].follow(people[3].get(callback))

    # The token arrives but is of the wrong type; or is fine, and the provider then fails.
    world.fault("stripe.token", "wrong_types", when="after", times=1)
    people[4].connect(world.link(f"{end_user}-4"), "stripe")
    world.fault("github.user", "html", times=1)
    people[5].connect(world.link(f"{end_user}-5"), "github")
    world.fault("github.installations", "wrong_types", times=1)
    people[5].connect(world.link(f"{end_user}-5b"), "github")

    # Sequin fails, then refuses, and quotes the token that it refuses.
    world.fault("sequin.import", "status", status=503)
    people[6].connect(world.link(f"{end_user}-6", apps=["stripe"]), "stripe")
    eventually(lambda: [one for one in world.requests_to("POST", "/sequin/v1/credentials") if one["status"] == 503])
    token = json.loads(world.requests_to("POST", TOKEN_PATHS[0])[-1]["response"])["access_token"]
    refusal = {"summary": f"{token} is wrong", "validation_errors": {"properties": {"secret": [f"{token} is wrong"]}}}
    world.fault("sequin.import", "status", status=422, body=json.dumps(refusal))
    eventually(lambda: world.connections(f"{end_user}-6")[0]["status"] == "import_failed")
    world.end_outage()

    # Answers that match nothing: an address with a code in it, and pages that do not exist.
    stranger = people[7]
    stranger.get(callback)
    stranger.get(callback.replace("state=", "state=x"))
    stranger.get(callback + "&code=twice")
    stranger.get("/oauth/stripe/callback?" + urlsplit(callback).query)
    stranger.get("/no-such-page?" + urlsplit(callback).query)
    stranger.get(people[0].seen[0].url)
    return people


def test_no_secret_is_stored_shown_or_logged(world: World, end_user: str) -> None:
    people = a_day_on_which_everything_goes_wrong(world, end_user)
    staff = _operator(world, end_user)
    for view in world.api("GET", "connections").json()["data"]:
        staff.get(f"/ops/connections/{view['ref']}")
    staff.get("/ops/connections")
    travelled = of_the_stand_ins(world)
    assert {kind: len(values) >= 3 for kind, values in travelled.items()} == dict.fromkeys(travelled, True)
    everybody = [*people, staff]

    provider = {kind: {value.encode() for value in values} for kind, values in travelled.items()}
    ours = of_the_settings(world)
    in_cookies = {
        f"cookie {cookie.name}": {str(cookie.value).encode()}
        for person in everybody
        for cookie in person.browser.cookies
        if cookie.value and "sandbox" not in cookie.name
    }
    links = {
        f"link {urlsplit(one.url).path[:12]}…": {urlsplit(one.url).path.split("/")[2].encode()}
        for person in people
        for one in person.seen
        if "/connect/" in one.url
    }
    assert in_cookies
    assert links
    presented = {"API key": {world.api_key.encode()}, "password": {PASSWORD.encode()}}

    database, logs = stored(world), logged(world)
    kept_from_both = provider | ours | in_cookies | links | presented
    assert search(database, kept_from_both) == []
    assert search(logs, kept_from_both) == []
    # A page's own redirect carries the state to the provider, and a cookie is for its browser.
    assert search(shown(world, everybody), {k: v for k, v in provider.items() if k != "state"} | ours | presented) == []

    # The search finds what is there, in each of the three places and in any spelling.
    ref = world.connections(f"{end_user}-0")[0]["ref"]
    assert search(database, {"account": {ref.encode()}})
    assert search(logs, {"connection": {ref.encode()}})
    assert search(shown(world, people), {"connection": {ref.encode()}})
    assert any(b'"level": "debug"' in content or b"flow.left" in content for _, content in logs)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_the_search_knows_every_spelling(offset: int) -> None:
    value = b"sk_test_51MfakeTokenThatMustNotLeak"
    for written in (
        value, value.hex().encode(), quote(b"a+b/c" + value, safe="").encode(),
        base64.b64encode(b"x" * offset + value + b":tail"), base64.urlsafe_b64encode(b"x" * offset + value),
    ):  # fmt: skip
        assert search([("here", b"before " + written + b" after")], {"it": {value}})
    assert not search([("here", b"before and after")], {"it": {value}})


PASSWORD = "a password that nobody may find anywhere"


def _operator(world: World, end_user: str) -> Person:
    email = f"staff-{end_user}@example.com"
    world.run("operator", "create", "--email", email, "--role", "admin", given=f"{PASSWORD}\n")
    staff = Person(world)
    staff.follow(staff.press(staff.follow(staff.get("/ops/")), "/ops/sign-in", email=email, password=PASSWORD))
    assert staff.get("/ops/connections").status_code == 200
    return staff
