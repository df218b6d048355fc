"""The overview: numbers first, then charts, each with its finding in words and a table of the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from types import MappingProxyType

from flask import render_template, request, url_for
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from broker.charts import Chart, columns, lines, shares, up_and_down
from broker.contract import iso
from broker.overview import SPANS, Overview, Period, total
from broker.status import NEEDS_ATTENTION, Status
from broker.web import services
from broker.web.pages import STATUS_WORDS
from broker.web.spreadsheet import stream

PERIODS: Mapping[Period, str] = MappingProxyType(
    {Period.DAY: "24 hours", Period.WEEK: "7 days", Period.MONTH: "30 days"}
)
WORKING = (Status.OK, Status.UNKNOWN)
WAITING = (Status.PENDING, Status.AWAITING_APPROVAL)
MOST_REASONS = 8
ENDED = {"flow.failed": "failed", "flow.interrupted": "interrupted", "flow.expired": "given up"}
"""How attempts end without a connection, by what the audit trail calls it."""


@dataclass(frozen=True)
class Number:
    """One number of the first line; `note` says what it means or compares it with."""

    label: str
    value: str
    note: str
    href: str


@dataclass(frozen=True)
class Row:
    """One row of a figure's table, and its bar where the figure has bars: `share` is in percent of all."""

    # What the row is about: a word, or when a part of the period begins.
    about: str | datetime
    cells: tuple[str, ...]
    href: str = ""
    share: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A chart with its finding in words and everything in a table."""

    key: str
    title: str
    finding: str
    # What the table's columns are called; the first says what a row is about.
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    # Marks over time; None where each row has a bar of its own.
    chart: Chart | None = None
    # The series of the chart, in the order they were drawn in.
    series: tuple[str, ...] = ()
    # Where the list behind the figure is.
    more: tuple[tuple[str, str], ...] = ()
    # Whether there is anything to draw.
    is_empty: bool = False


def home() -> str:
    """Show the overview of the period in the address."""
    period = _period()
    found = services().overviews.find(period)
    return render_template(
        "console/overview.html",
        period=period,
        periods=PERIODS,
        overview=found,
        numbers=_numbers(found, period) if found is not None else [],
        figures=_figures(found, period) if found is not None else [],
    )


def export_overview(key: str) -> Response:
    """Send the table of one figure as CSV. Raises NotFound for one that does not exist or is not counted yet."""
    period = _period()
    found = services().overviews.find(period)
    figure = next((each for each in _figures(found, period) if each.key == key), None) if found is not None else None
    if figure is None:
        raise NotFound
    rows = ((row.about if isinstance(row.about, str) else iso(row.about), *row.cells) for row in figure.rows)
    response = Response(stream(figure.heads, rows), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{figure.key}-{period}.csv"'
    return response


def _period() -> Period:
    wanted = request.args.get("period", "")
    return Period(wanted) if wanted in set(Period) else Period.WEEK


def _numbers(found: Overview, period: Period) -> list[Number]:
    groups, length = found.groups, PERIODS[period]
    connected = sum(found.connected)
    unchecked, broken = total(groups, [Status.UNKNOWN]), total(groups, NEEDS_ATTENTION)
    waiting_for_owner = total(groups, [Status.AWAITING_APPROVAL])
    times = found.times
    return [
        Number(
            "Connected now", _count(total(groups, WORKING)),
            f"{_count(unchecked)} of them not checked in the last day" if unchecked else "all checked in the last day",
            url_for("console.list_connections"),
        ),
        Number(
            "Need attention", _count(broken), "somebody has to do something" if broken else "nothing to do",
            url_for("console.list_connections", status=_most(found, NEEDS_ATTENTION)),
        ),
        Number(
            "Waiting", _count(total(groups, WAITING)),
            f"{_count(waiting_for_owner)} of them for an owner" if waiting_for_owner else "on their way into Sequin",
            url_for("console.list_connections", status=Status.PENDING),
        ),
        Number(
            f"Connected in {length}", _count(connected), _compared(connected, found.connected_before, length),
            _since(found),
        ),
        Number(
            "Attempts that succeeded", _percent(connected, found.attempts) if found.attempts else "–",
            f"of {_count(found.attempts)} that ended" if found.attempts else "none has ended",
            "#attempts",
        ),
        Number(
            "Time to import", "–" if times.median_of_all is None else _seconds(times.median_of_all),
            "nothing was imported" if times.slow_of_all is None else f"95 of 100 within {_seconds(times.slow_of_all)}",
            "#times",
        ),
    ]  # fmt: skip


def _figures(found: Overview, period: Period) -> list[Figure]:
    build: tuple[Callable[[Overview, Period], Figure], ...] = (
        _attempts, _funnel, _providers, _statuses, _import_times, _reasons, _health,
    )  # fmt: skip
    return [each(found, period) for each in build]


def _attempts(found: Overview, period: Period) -> Figure:
    length = PERIODS[period]
    connected, failed, abandoned = sum(found.connected), sum(found.failed), sum(found.abandoned)
    return Figure(
        "attempts",
        "Connections over time",
        f"{_things(connected, 'account')} connected in {length}, "
        f"{_compared(connected, found.connected_before, length)}. "
        f"{_things(failed, 'attempt')} failed, and {_count(abandoned)} {'was' if abandoned == 1 else 'were'} given up.",
        ("Begins", "Connected", "Failed", "Given up"),
        tuple(
            Row(start, tuple(map(_count, values)), _since(found, start))
            for start, *values in zip(found.starts, found.connected, found.failed, found.abandoned, strict=True)
        ),
        chart=columns((found.connected, found.failed, found.abandoned), _labels(found, period)),
        series=("Connected", "Failed", "Given up"),
        more=(("Accounts connected in this time", _since(found)),),
        is_empty=not found.attempts,
    )


def _funnel(found: Overview, _period: Period) -> Figure:
    funnel = found.funnel
    steps = (
        ("Link made", funnel.created), ("Opened", funnel.opened), ("Left for the provider", funnel.left),
        ("Came back", funnel.returned), ("Connected", funnel.connected), ("Imported", funnel.imported),
    )  # fmt: skip
    lost = [(before - after, name) for (_, before), (name, after) in pairwise(steps)]
    most, where = max(lost)
    finding = f"Of {_things(funnel.created, 'link')}, {_count(funnel.imported)} led to an import."
    if most:
        finding += f" Most stop before “{where}”: {_count(most)}."
    if funnel.followed < funnel.created:
        finding += f" Worked out from {_count(funnel.followed)} of them."
    lengths = shares([count for _, count in steps], funnel.created)
    return Figure(
        "funnel",
        "From link to import",
        finding,
        ("Step", "Links", "Of all"),
        tuple(
            Row(name, (_count(count), _percent(count, funnel.created)), share=share)
            for (name, count), share in zip(steps, lengths, strict=True)
        ),
        more=tuple(
            (words, url_for("console.list_links", state=state))
            for words, state in (("Not opened", "unopened"), ("Opened, not started", "opened"), ("Started", "started"))
        ),
        is_empty=not funnel.created,
    )


def _providers(found: Overview, _period: Period) -> Figure:
    apps = {app.key: app.title for app in services().apps}
    counts: dict[str, int] = {}
    for group in found.groups:
        if group.status != Status.DISCONNECTED:
            counts[group.app] = counts.get(group.app, 0) + group.count
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    everything = sum(counts.values())
    finding = "Nothing is connected."
    if ordered:
        key, most = ordered[0]
        part = _percent(most, everything)
        finding = f"{_things(everything, 'connection')}, {part} of them through {_app(key, apps)}."
    return Figure(
        "providers",
        "By provider",
        finding,
        ("OAuth app", "Connections", "Of all"),
        tuple(
            Row(
                _app(key, apps), (_count(count), _percent(count, everything)),
                url_for("console.list_connections", app=key), share,
            )
            for (key, count), share in zip(ordered, shares([count for _, count in ordered], everything), strict=True)
        ),
        is_empty=not ordered,
    )  # fmt: skip


def _statuses(found: Overview, _period: Period) -> Figure:
    counts = [(status, total(found.groups, [status])) for status in Status]
    known = [(status, count) for status, count in counts if count]
    everything = sum(count for _, count in known)
    broken = total(found.groups, NEEDS_ATTENTION)
    living = everything - total(found.groups, [Status.DISCONNECTED])
    finding = f"{_count(broken)} of {_things(living, 'connection')} {'needs' if broken == 1 else 'need'} attention."
    return Figure(
        "statuses",
        "By status",
        finding if living else "Nothing is connected.",
        ("Status", "Connections", "Of all"),
        tuple(
            Row(
                STATUS_WORDS[status].operator, (_count(count), _percent(count, everything)),
                url_for("console.list_connections", status=status), share,
            )
            for (status, count), share in zip(known, shares([count for _, count in known], everything), strict=True)
        ),
        is_empty=not known,
    )  # fmt: skip


def _import_times(found: Overview, period: Period) -> Figure:
    times = found.times
    finding = "Nothing was imported in this time."
    if times.median_of_all is not None and times.slow_of_all is not None:
        finding = (
            f"Half of the imports arrived within {_seconds(times.median_of_all)}, "
            f"95 of 100 within {_seconds(times.slow_of_all)}."
        )
        if times.looked_at < times.of:
            finding += f" Measured on {_count(times.looked_at)} of {_count(times.of)} connects."
    known = [value for value in times.slow if value is not None]
    # One unit for the whole chart, so that its scale can be read.
    unit, each = (" min", 60.0) if known and max(known) >= 300 else (" s", 1.0)

    def scaled(values: Sequence[float | None]) -> list[float | None]:
        return [None if value is None else value / each for value in values]

    return Figure(
        "times",
        "Time to import",
        finding,
        ("Begins", "Half within", "95 of 100 within"),
        tuple(
            Row(start, tuple("–" if value is None else _seconds(value) for value in values))
            for start, *values in zip(found.starts, times.median, times.slow, strict=True)
        ),
        chart=lines((scaled(times.median), scaled(times.slow)), _labels(found, period), unit=unit),
        series=("Half within (p50)", "95 of 100 within (p95)"),
        more=(("Imports that are being tried again", url_for("console.list_jobs", state="retrying")),),
        is_empty=not known,
    )


def _reasons(found: Overview, _period: Period) -> Figure:
    counted = [
        (
            f"{_words(reason.code)} ({ENDED.get(reason.action, reason.action)})", reason.count,
            _trail(found, action=reason.action),
        )
        for reason in found.reasons
    ]  # fmt: skip
    failing: dict[str, int] = {}
    for group in found.groups:
        if group.status == Status.IMPORT_FAILED:
            failing[group.error or "unknown"] = failing.get(group.error or "unknown", 0) + group.count
    held = url_for("console.list_connections", status=Status.IMPORT_FAILED)
    counted += [(f"{_words(code)} (import, now)", count, held) for code, count in failing.items()]
    counted.sort(key=lambda each: (-each[1], each[0]))
    shown = counted[:MOST_REASONS]
    others = sum(count for _, count, _ in counted[MOST_REASONS:])
    if others:
        shown.append(("All others", others, _trail(found)))
    everything = sum(count for _, count, _ in shown)
    finding = "Nothing failed."
    if shown:
        words, most, _ = shown[0]
        finding = f"{words} is the most frequent: {_count(most)} of {_count(everything)}."
    return Figure(
        "reasons",
        "Failures by reason",
        finding,
        ("Reason", "Failures", "Of all"),
        tuple(
            Row(words, (_count(count), _percent(count, everything)), href, share)
            for (words, count, href), share in zip(
                shown, shares([count for _, count, _ in shown], everything), strict=True
            )
        ),
        is_empty=not shown,
    )


def _health(found: Overview, period: Period) -> Figure:
    broke, recovered = sum(found.broke), sum(found.recovered)
    return Figure(
        "health",
        "Health changes",
        f"{_things(broke, 'connection')} began to need attention in {PERIODS[period]}, {_count(recovered)} recovered.",
        ("Begins", "Began to need attention", "Recovered"),
        tuple(
            Row(start, (_count(up), _count(down)))
            for start, up, down in zip(found.starts, found.broke, found.recovered, strict=True)
        ),
        chart=up_and_down(found.broke, found.recovered, _labels(found, period)),
        series=("Recovered (down)", "Began to need attention (up)"),
        more=(("Connections in error", url_for("console.list_connections", status=Status.ERROR)),),
        is_empty=not (broke or recovered),
    )


# --- words ------------------------------------------------------------------------------------------------


def _count(count: int) -> str:
    return f"{count:,}"


def _things(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _percent(part: int, whole: int) -> str:
    """Return a share in whole percent; never 0 or 100 for what is neither."""
    if not whole:
        return "–"
    exact = part / whole * 100
    if 0 < exact < 1:
        return "under 1 %"
    return "over 99 %" if 99 < exact < 100 else f"{exact:.0f} %"


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _compared(now: int, before: int, length: str) -> str:
    span = f"the same time in the {length} before"
    if not before:
        return f"none in {span}"
    if now == before:
        return f"as many as in {span}"
    more = "more" if now > before else "fewer"
    # Twice as many and above reads better as a number.
    by = _percent(abs(now - before), before) if now < 2 * before else _count(now - before)
    return f"{by} {more} than in {span}"


def _words(code: str) -> str:
    return code.replace("_", " ").capitalize() or "Unknown"


def _app(key: str, titles: Mapping[str, str]) -> str:
    """Return an OAuth app's name, with its key where that says more."""
    title = titles.get(key)
    return key if title is None or list(titles.values()).count(title) > 1 else title


def _most(found: Overview, statuses: frozenset[Status]) -> Status:
    """Return the status of these that most connections have."""
    return max(sorted(statuses), key=lambda status: total(found.groups, [status]))


def _labels(found: Overview, period: Period) -> list[str]:
    form = "%H:%M" if SPANS[period].part < timedelta(days=1) else "%-d %b"
    return [start.strftime(form) for start in found.starts]


def _trail(found: Overview, **more: str) -> str:
    """Return the audit trail since the period began."""
    return url_for("console.show_audit", **more, **{"from": f"{found.starts[0]:%Y-%m-%d}"})  # type: ignore[arg-type]


def _since(found: Overview, part: datetime | None = None) -> str:
    """Return the list of what was connected since the period began, or on the day of one part."""
    if part is None:
        return url_for("console.list_connections", **{"from": f"{found.starts[0]:%Y-%m-%d}"})  # type: ignore[arg-type]
    return url_for("console.list_connections", **{"from": f"{part:%Y-%m-%d}", "to": f"{part:%Y-%m-%d}"})  # type: ignore[arg-type]
