"""Which Chromium the browser tests use. `python -m tests.chromium` finds one, or gets one, and says which."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    "NO BROWSER: the browser tests are skipped. "
    "Install Chromium (Debian: apt-get install chromium) or set CHROMIUM to the path of one."
)
ASK_PLAYWRIGHT = """
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
"""
DOWNLOAD_SECONDS = 180
DEBIAN_SECONDS = 300


@lru_cache(maxsize=1)
def find() -> Path | None:
    """Return a Chromium that starts: $CHROMIUM, one on PATH, or Playwright's own download."""
    return next((path for path in _candidates() if _starts(path)), None)


def _candidates() -> Iterator[Path]:
    chosen = os.environ.get("CHROMIUM")
    if chosen:
        yield Path(chosen)
        return
    for name in NAMES:
        if place := shutil.which(name):
            yield Path(place)
    answer = _run([sys.executable, "-c", ASK_PLAYWRIGHT], seconds=30)
    if answer:
        yield Path(answer)


def _starts(path: Path) -> bool:
    # Ubuntu's `chromium-browser` may be a stub that only asks for a snap; a download may lack system libraries.
    return path.is_file() and "Chrom" in (_run([str(path), "--version"], seconds=30) or "")


def _run(command: list[str], *, seconds: float) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _get() -> None:
    """Try to get a Chromium; every step may fail and is bounded in time."""
    print(f"No Chromium here; trying Playwright's download (at most {DOWNLOAD_SECONDS} s) …", flush=True)
    _run([sys.executable, "-m", "playwright", "install", "chromium"], seconds=DOWNLOAD_SECONDS)
    find.cache_clear()
    if find() or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    print(f"Trying Debian's package (at most {DEBIAN_SECONDS} s) …", flush=True)
    for command in (
        ["apt-get", "update", "-qq"],
        ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium", "fonts-liberation"],
    ):
        _run(["env", "DEBIAN_FRONTEND=noninteractive", *command], seconds=DEBIAN_SECONDS)
    find.cache_clear()


def main() -> None:
    """Make sure that there is a Chromium if there can be one. Never fails: the tests say what they skipped."""
    if find() is None and not os.environ.get("CHROMIUM"):
        _get()
    path = find()
    print(f"Browser for the tests: {path}" if path else f"*** {MISSING} ***", flush=True)


if __name__ == "__main__":
    main()
