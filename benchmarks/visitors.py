"""People who use a broker, from a process of their own: so that the load is not made by what is measured.

`visit` starts it and returns what they met. Run as a program it reads a `Visit` as a line of JSON from standard input.
Its client is a bare one: two cores serve everybody here, so what the load itself costs has to stay small.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlencode, urlsplit

from tests.e2e.world import ROOT

PATIENCE_SECONDS = 60.0
LONGEST_VISIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Visit:
    """What is to be done: connect through each of these links, or only look at their pages."""

    url: str
    # Tokens of connect links: each is for one flow.
    links: Sequence[str]
    app: str = "stripe"
    at_once: int = 8
    # How many a second start; None for as fast as it goes.
    per_second: float | None = None
    # Look at the links' pages, one after the other and again, for so many seconds; None to connect.
    look_for: float | None = None
    # Go on until `Visitors.enough` is called, or the links are used up.
    until_told: bool = False


@dataclass
class Met:
    """What visitors met: seconds that each kind of request took, and what failed, in words."""

    seconds: float = 0.0
    took: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def percentile(self, share: float, *kinds: str) -> float:
        """Return the milliseconds within which this share (0 to 1) of such requests were answered."""
        found = sorted(itertools.chain.from_iterable(self.took.get(kind, []) for kind in kinds))
        return 1000 * found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")


class Visitors:
    """The visitors of one `Visit`, as a process that has been started."""

    def __init__(self, visit: Visit) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.visitors"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(asdict(visit))}\n")
        if visit.until_told:
            self._process.stdin.flush()
        else:
            self._process.stdin.close()

    def enough(self) -> None:
        """Let nobody begin any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def met(self) -> Met:
        """Wait until they are done and return what they met."""
        assert self._process.stdout is not None
        with self._process.stdout as answer:
            told = answer.read()
        if self._process.wait(LONGEST_VISIT_SECONDS):
            raise SystemExit("The visitors failed.")
        return Met(**json.loads(told))


def visit(asked: Visit) -> Met:
    """Let visitors come and go, and return what they met."""
    return Visitors(asked).met()


# --- the process ----------------------------------------------------------------------------------------


class Browser:
    """Keeps cookies and one connection to each place."""

    def __init__(self, met: Met, lock: threading.Lock) -> None:
        self._met = met
        self._lock = lock
        self._open: dict[str, HTTPConnection] = {}
        self._cookies: dict[str, str] = {}

    def ask(self, kind: str, method: str, url: str, fields: dict[str, str] | None = None) -> tuple[int, str, str]:
        """Send a request; return status, where it leads, and the page."""
        parts = urlsplit(url)
        connection = self._open.get(parts.netloc)
        if connection is None:
            connection = self._open[parts.netloc] = HTTPConnection(parts.netloc, timeout=PATIENCE_SECONDS)
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
        body = None
        if fields is not None:
            body = urlencode(fields)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        began = time.perf_counter()
        try:
            connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body, headers)
            answer = connection.getresponse()
            page = answer.read().decode()
        except (OSError, HTTPException):
            connection.close()
            raise
        took = time.perf_counter() - began
        for cookie in answer.headers.get_all("Set-Cookie") or ():
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        with self._lock:
            self._met.took.setdefault(kind, []).append(took)
        return answer.status, answer.headers.get("Location", ""), page


class Crowd:
    """Threads, each a person with a browser of their own who connects account after account."""

    def __init__(self, asked: Visit) -> None:
        self._asked = asked
        self._met = Met()
        self._lock = threading.Lock()
        self._links = enumerate(asked.links) if asked.look_for is None else enumerate(itertools.cycle(asked.links))
        self._began = 0.0
        self._enough = threading.Event()

    def enough(self) -> None:
        """Let nobody begin any more."""
        self._enough.set()

    def run(self) -> Met:
        """Let everybody come and go."""
        browsers = [Browser(self._met, self._lock) for _ in range(self._asked.at_once)]
        self._began = time.perf_counter()
        people = [threading.Thread(target=self._be, args=(browser,)) for browser in browsers]
        for person in people:
            person.start()
        for person in people:
            person.join()
        self._met.seconds = time.perf_counter() - self._began
        return self._met

    def _be(self, browser: Browser) -> None:
        proof = ""
        for link in self._mine():
            try:
                if self._asked.look_for is not None:
                    self._look(browser, link)
                    continue
                # The page once: its cookie and token serve every later form of this browser.
                proof = proof or self._proof(self._look(browser, link))
                self._connect(browser, link, proof)
            except (OSError, HTTPException, LookupError) as failure:
                with self._lock:
                    self._met.failures.append(f"{type(failure).__name__}: {failure}")

    def _mine(self) -> Iterator[str]:
        while True:
            with self._lock:
                number, link = next(self._links, (0, ""))
            if not link:
                return
            if self._asked.per_second is not None:
                self._enough.wait(max(0.0, self._began + number / self._asked.per_second - time.perf_counter()))
            if self._enough.is_set():
                return
            if self._asked.look_for is not None and time.perf_counter() - self._began > self._asked.look_for:
                return
            yield link

    def _look(self, browser: Browser, link: str) -> str:
        status, _, page = browser.ask("page", "GET", f"{self._asked.url}/connect/{link}")
        if status != 200:
            raise LookupError(f"the page of a link answers {status}")
        return page

    def _proof(self, page: str) -> str:
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
        if found is None:
            raise LookupError("the page of a link has no form")
        return found[1]

    def _connect(self, browser: Browser, link: str, proof: str) -> None:
        address = f"{self._asked.url}/connect/{link}/start/{self._asked.app}"
        status, onward, _ = browser.ask("start", "POST", address, {"csrf_token": proof})
        if status != 303:
            raise LookupError(f"the start answers {status}")
        status, onward, _ = browser.ask("provider", "GET", onward)
        if not onward.startswith(f"{self._asked.url}/oauth/"):
            raise LookupError(f"the provider answers {status}")
        status, onward, _ = browser.ask("callback", "GET", onward)
        if status != 303 or "/flows/" not in onward:
            raise LookupError(f"the callback answers {status}")


def _until_told(crowd: Crowd) -> None:
    sys.stdin.read()
    crowd.enough()


def main() -> None:
    """Do what standard input says."""
    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    crowd = Crowd(Visit(**asked))
    if asked["until_told"]:
        threading.Thread(target=_until_told, args=(crowd,), daemon=True).start()
    json.dump(asdict(crowd.run()), sys.stdout)


if __name__ == "__main__":
    main()
