"""What reading the settings finds out: problems that stop the start, and warnings that do not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field


class Wrong(ValueError):
    """A value cannot be used. Holds a complaint and, where the setting's example is not enough, the fix; no value."""

    def __init__(self, complaint: str, fix: str = "") -> None:
        """Both are parts of a sentence: `SETTING complaint: fix.`"""
        super().__init__(f"{complaint}: {fix}" if fix else complaint)
        self.complaint = complaint
        self.fix = fix

    def sentence(self, where: str, fallback: str) -> str:
        """Return the whole sentence for the setting `where`; `fallback` is the fix when this has none."""
        fix = self.fix or fallback
        return f"{where} {self.complaint}: {fix}." if fix else f"{where} {self.complaint}."


@dataclass
class Report:
    """Collects problems and warnings; `production` says which rules apply."""

    production: bool = True
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, sentence: str) -> None:
        """Add a problem; the same sentence only once."""
        if sentence not in self.problems:
            self.problems.append(sentence)

    def warn(self, sentence: str) -> None:
        """Add a warning; the same sentence only once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the question that corrects a misspelt `name`, or `otherwise` when nothing known is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"{otherwise}."
