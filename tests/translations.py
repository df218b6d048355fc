"""The catalogues: `python -m tests.translations` brings them up to date with what pages say.

Pages say what templates and views translate themselves, and what lower layers only declare: the headings and advice
of errors, the words of providers, and sentences marked as `translatable`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

from babel.messages import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po

from broker.settings import LANGUAGES
from broker.web.languages import CATALOGUES, ENGLISH

ROOT = Path(__file__).parent.parent
TEMPLATES = ("base.html", "macros.html", "connect/*.html", "connections/*.html", "errors/*.html")
DECLARED = {"heading", "advice"}
"""Attributes of classes that hold sentences for people."""
TABLES = {"NOTES", "SEALED_SENTENCES", "STEP_NAMES", "STEP_SENTENCES", "TROUBLES"}
"""Tables that hold them as their values, or as the first argument of what their values are made with."""
OF_PROVIDERS = {"reads", "never", "caveat"}
"""Arguments of `Provider` that do."""
NOT_FOR_PEOPLE = {
    *(
        "apikeys.py",
        "audit_trail.py",
        "bulk.py",
        "circuits.py",
        "doctor.py",
        "idempotency.py",
        "matching.py",
        "notifications.py",
        "operators.py",
    ),
    *("reconciliation.py", "trials.py", "webhook_endpoints.py", "workload.py"),
}
"""Modules whose errors only operators, hosts and command lines see."""
WIDTH = 120
HEADER_LINES = 16


PROVIDERS = "broker/providers"
"""Where the words of providers are said to be: the folder, so that a new provider changes nothing by itself."""


def extracted() -> Catalog:
    """Return everything pages say, in English, each with where it is said."""
    catalog = Catalog(project="OAuth broker", charset="utf-8")
    for place, message in sorted(_messages(), key=_order):
        catalog.add(message, locations=[(place, 0)])
    return catalog


def _order(found: tuple[str, str | tuple[str, ...]]) -> tuple[str, str]:
    # As they are written, but for those of providers: whichever file says them first.
    place, message = found
    return place, str(message) if place == PROVIDERS else ""


def catalogue_path(language: str) -> Path:
    """Return where a language's catalogue is."""
    return CATALOGUES / language / "LC_MESSAGES" / "messages.po"


def read(language: str) -> Catalog:
    """Return a language's catalogue as it is written."""
    with catalogue_path(language).open("rb") as written:
        return read_po(written, locale=language)


def waiting(language: str) -> list[str]:
    """Return the words of providers that a language has none for: until it has, its pages show them in English."""
    known = read(language)
    return sorted(
        str(message.id)
        for message in extracted()
        if {place for place, _ in message.locations} == {PROVIDERS} and message.id not in known
    )


def brought_up_to_date(language: str, *, without: Iterable[str] = ()) -> bytes:
    """Return a language's catalogue with what pages say now: new sentences are empty, those nobody says are gone."""
    path = catalogue_path(language)
    catalog = read(language) if path.is_file() else Catalog(locale=language, fuzzy=False)
    catalog.update(extracted(), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    for sentence in without:
        catalog.delete(sentence)
    catalog.header_comment = f"# What pages say, in the language {language}. Made by `python -m tests.translations`."
    written = BytesIO()
    write_po(written, catalog, width=WIDTH, omit_header=False, ignore_obsolete=True, include_lineno=False)
    # Dates and tool versions would make every update a change.
    kept = (b'"Language:', b'"Plural-Forms:', b'"MIME-Version:', b'"Content-T')
    lines = [
        line
        for number, line in enumerate(written.getvalue().splitlines(keepends=True))
        if number > HEADER_LINES or not line.startswith(b'"') or line.startswith(kept)
    ]
    return b"".join(lines)


def untranslated(language: str) -> list[str]:
    """Return the sentences that a language's catalogue has no words for."""
    return [
        str(message.id)
        for message in read(language)
        if message.id and not all(message.string if isinstance(message.string, tuple) else (message.string,))
    ]


def _messages() -> Iterator[tuple[str, str | tuple[str, ...]]]:
    for pattern in TEMPLATES:
        for path in sorted((ROOT / "templates").glob(pattern)):
            yield from _called(path, "jinja2.ext:babel_extract")
    for path in sorted((ROOT / "broker").rglob("*.py")):
        parts = path.relative_to(ROOT / "broker").parts
        if parts[0] in {"cli", "sandbox"} or "console" in parts or "api" in parts or parts[-1] in NOT_FOR_PEOPLE:
            continue
        yield from _called(path, "python")
        yield from _declared(path)


def _called(path: Path, method: str) -> Iterator[tuple[str, str | tuple[str, ...]]]:
    keywords = {"_": None, "gettext": None, "ngettext": (1, 2), "translatable": None}
    with path.open("rb") as source:
        for _line, message, _comments, _context in extract(method, source, keywords, options={"trimmed": "true"}):
            yield _place(path), message


def _place(path: Path) -> str:
    place = str(path.relative_to(ROOT))
    return PROVIDERS if place.startswith(f"{PROVIDERS}/") else place


def _declared(path: Path) -> Iterator[tuple[str, str]]:
    place = _place(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # What programs are told stays English.
    tree.body = [part for part in tree.body if not _is_for_machines(part)]
    for node in ast.walk(tree):
        for text in _texts_of(node):
            if text:
                yield place, text


def _is_for_machines(part: ast.stmt) -> bool:
    targets = part.targets if isinstance(part, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id == "MACHINE_SENTENCES" for target in targets)


def _texts_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.ClassDef():
            yield from _of_class(node)
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            yield from _of_constant(name, node)
        case ast.Call(func=ast.Name(id="Provider")):
            for argument in node.keywords:
                if argument.arg in OF_PROVIDERS:
                    yield from _texts(argument.value)
        case ast.Call(func=ast.Name(id="Sentence")):
            for value in node.args[1:3]:
                yield from _texts(value)


def _of_constant(name: str, node: ast.AnnAssign | ast.Assign) -> Iterator[str]:
    # Words that several providers share.
    if name.isupper() and name.lower() in OF_PROVIDERS:
        yield from _texts(node.value)
    if name in TABLES:
        for table in ast.walk(node):
            for value in table.values if isinstance(table, ast.Dict) else ():
                yield from _texts(value.args[0] if isinstance(value, ast.Call) else value)


def _of_class(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign):
            names: list[ast.expr] = [line.target]
        else:
            names = line.targets if isinstance(line, ast.Assign) else []
        if any(isinstance(name, ast.Name) and name.id in DECLARED for name in names):
            yield from _texts(getattr(line, "value", None))


def _texts(value: ast.AST | None) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.Tuple):
        for element in value.elts:
            yield from _texts(element)


def main() -> None:
    """Bring every catalogue up to date and say what is still to be translated."""
    for language in LANGUAGES:
        if language == ENGLISH:
            continue
        path = catalogue_path(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(brought_up_to_date(language))
        missing = untranslated(language)
        print(f"{path.relative_to(ROOT)}: {len(missing)} to translate")
        for each in missing:
            print(f"  {each}")


if __name__ == "__main__":
    main()
