"""Where settings come from: the environment, a `.env`, mounted files, and one TOML file."""

from __future__ import annotations

import io
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from broker.settings.report import Report, Wrong, did_you_mean
from broker.settings.values import expanded

LARGEST_FILE = 1 << 20
_SPEAKING_NAME = re.compile(r"[A-Z][A-Z0-9]{0,30}(?:_[A-Z0-9]{1,30}){1,6}")


@dataclass(frozen=True)
class Found:
    """The text of a setting and where it stood."""

    text: str = field(repr=False)
    source: str


def read_file(path: Path) -> str:
    """Return the text of a small file.

    Raises:
        Wrong: it cannot be read. The path is not repeated: some people put the secret itself there.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise Wrong(f"cannot be read ({reason.lower()})", "correct the path or its permissions") from None
    if len(content) > LARGEST_FILE:
        raise Wrong("is larger than 1 MiB", "correct the path")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Wrong("is not UTF-8 text", "correct the path, or save the file as UTF-8") from None


def named_file(path: Path) -> str:
    """Return the text of a file that a setting names.

    Raises:
        Wrong: as `read_file`, worded for the setting.
    """
    try:
        return read_file(path)
    except Wrong as wrong:
        raise Wrong(f"names a file that {wrong.complaint}", wrong.fix) from None


def read_value(path: Path) -> str:
    """Return the content of a mounted secret, without the one newline that ends it.

    Raises:
        Wrong: it cannot be read, or is empty.
    """
    text = named_file(path)
    text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    if not text.strip():
        raise Wrong("names a file that is empty", "put the value into that file")
    return text


class Environment:
    """The environment over a `.env`; in each, NAME or else NAME_FILE. A name that is set to nothing is not set."""

    def __init__(self, environ: Mapping[str, str], dotenv: Path | None, report: Report) -> None:
        """Read the `.env` if there is one; mounted files are read when asked for."""
        self._layers: list[tuple[str, Mapping[str, str]]] = [("environment", environ)]
        self._report = report
        self._seen: dict[str, Found | None] = {}
        self.broken: set[str] = set()
        """Names that are set but unusable, with the problem already reported."""
        if dotenv is not None and dotenv.exists():
            self._layers.append((".env", self._dotenv(dotenv)))

    def _dotenv(self, path: Path) -> dict[str, str]:
        try:
            text = read_file(path)
        except Wrong as wrong:
            self._report.problem(wrong.sentence("The .env file", ""))
            return {}
        values = dotenv_values(stream=io.StringIO(text), interpolate=False)
        return {name: value for name, value in values.items() if value is not None}

    def names(self) -> Iterator[str]:
        """Yield every name that is present."""
        yield from dict.fromkeys(name for _, layer in self._layers for name in layer)

    def plain(self, name: str) -> str:
        """Return the text of exactly this name, empty when it is not there."""
        return next((layer[name] for _, layer in self._layers if name in layer), "")

    def get(self, name: str) -> Found | None:
        """Return the setting, or None when it is not set or cannot be read (see `broken`)."""
        if name not in self._seen:
            try:
                self._seen[name] = self._find(name)
            except Wrong as wrong:
                self._report.problem(wrong.sentence(f"{name}_FILE", ""))
                self.broken.add(name)
                self._seen[name] = None
        return self._seen[name]

    def _find(self, name: str) -> Found | None:
        for source, layer in self._layers:
            text, file = layer.get(name), layer.get(f"{name}_FILE")
            if (text or "").strip() and (file or "").strip():
                raise Wrong(f"and {name} are both set", "keep one of them")
            if file is not None and file.strip():
                return Found(read_value(Path(file.strip())), "file")
            if text is not None or file is not None:
                return Found(text, source) if text and text.strip() else None
        return None

    def is_set(self, name: str) -> bool:
        """Tell whether somebody meant to set it, readable or not."""
        return self.get(name) is not None or name in self.broken


class Document:
    """The TOML file, with `{ env = "NAME" }` and `{ file = "path" }` anywhere in place of a text."""

    def __init__(self, content: dict[str, Any], folder: Path, environment: Environment, report: Report) -> None:
        """`folder` is where relative paths in the file start."""
        self.content = content
        self._folder = folder
        self._environment = environment
        self._report = report
        self.readable = True
        """False when BROKER_CONFIG is set but its file cannot be used."""
        self.references = frozenset(_references(content))
        """Environment names that the file refers to."""

    @classmethod
    def read(cls, path: Path | None, environment: Environment, report: Report) -> Document:
        """Read the file; without a path, or with a problem, the document is empty."""
        content: dict[str, Any] | None = {}
        if path is not None:
            content = None
            try:
                content = tomllib.loads(named_file(path))
            except Wrong as wrong:
                fix = "set BROKER_CONFIG to the path of the TOML file itself"
                report.problem(Wrong(wrong.complaint, fix).sentence("BROKER_CONFIG", ""))
            except tomllib.TOMLDecodeError as error:
                place = re.search(r"\(at (.+?)\)$", str(error))
                where = place[1] if place else "an unknown place"
                report.problem(f"BROKER_CONFIG names a file that is not TOML at {where}: correct that line.")
        document = cls(content or {}, path.parent if path else Path(), environment, report)
        document.readable = content is not None and "BROKER_CONFIG" not in environment.broken
        return document

    def table(self, *keys: str) -> dict[str, Any]:
        """Return a table of the file, empty when it is missing; anything else in its place is a problem."""
        table = self.content
        for depth, key in enumerate(keys, 1):
            inner: object = table.get(key, {})
            if not isinstance(inner, dict):
                name = ".".join(keys[:depth])
                self._report.problem(f"{name} in the TOML file is not a table: begin it with the line [{name}].")
                return {}
            table = inner
        return table

    def has(self, *keys: str) -> bool:
        """Tell whether somebody wrote a table down, be it an empty one."""
        table: object = self.content
        for key in keys:
            if not isinstance(table, dict) or key not in table:
                return False
            table = table[key]
        return isinstance(table, dict)

    def unknown(self, where: str, keys: Mapping[str, Any], known: tuple[str, ...]) -> None:
        """Report every key that nothing reads."""
        for key in keys:
            if key not in known:
                fix = did_you_mean(key, known, f"remove it; known are {', '.join(known)}")
                self._report.problem(f"{where} has the unknown key {key}: {fix}")

    def text(self, value: Any, where: str, *, secret: bool = False) -> str | None:
        """Return the text of a value, following a reference; None after reporting a problem."""
        try:
            return self._text(value, where, secret)
        except Wrong as wrong:
            self._report.problem(wrong.sentence(where, ""))
            return None

    def _text(self, value: Any, where: str, secret: bool) -> str:
        if isinstance(value, dict):
            return self._reference(value)
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, str | int | float):
            raise Wrong(
                "is not a single value", 'write it in quotation marks, or as { env = "NAME" } or { file = "path" }'
            )
        if secret and self._report.production:
            raise Wrong("holds a secret in plain text", 'write { env = "NAME" } or { file = "path" } instead')
        if secret:
            self._report.warn(f"{where} holds a secret in plain text: production refuses it.")
        if not str(value).strip():
            raise Wrong("is empty", "remove it or fill it in")
        return str(value)

    def _reference(self, value: dict[str, Any]) -> str:
        target = next(iter(value.values())) if len(value) == 1 else None
        if not isinstance(target, str) or not value.keys() <= {"env", "file"}:
            raise Wrong("is not a reference", 'write { env = "NAME" } or { file = "path" }')
        if "file" in value:
            return read_value(self._folder / expanded(target))
        found = self._environment.get(target)
        if found is None:
            # Only what cannot be anything but a name is repeated: some people put the secret itself there.
            name = f" {target}" if _SPEAKING_NAME.fullmatch(target) else ""
            raise Wrong(f"refers to the environment variable{name}, which is not set", "set it")
        return found.text


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if value.keys() == {"env"} and isinstance(value["env"], str):
            yield value["env"]
        for part in value.values():
            yield from _references(part)
    elif isinstance(value, list):
        for part in value:
            yield from _references(part)
