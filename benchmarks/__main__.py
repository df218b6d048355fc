"""`python -m benchmarks [NAME …]`: run some or all benchmarks and print a table for each."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from benchmarks.framework import DATABASES, Setting, discover, machine, table


def main() -> None:
    """Run what the command line asks for."""
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(known)}; all by default")
    parser.add_argument("--size", "--rows", type=int, help="how much of it; each benchmark has a default of its own")
    parser.add_argument("--databases", default=",".join(DATABASES), help="which databases, with commas between")
    parser.add_argument("--json", action="store_true", help="for machines")
    asked = parser.parse_args()
    kinds = asked.databases.split(",")
    if unknown := [*set(asked.names) - set(known), *set(kinds) - set(DATABASES)]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join([*known, *DATABASES])}")
    found = {}
    for name in asked.names or known:
        benchmark = known[name]
        size = asked.size or benchmark.size
        if not asked.json:
            print(f"\n{benchmark.title}: {size:,} {benchmark.unit}\n{machine()}\n", flush=True)
        with Setting(kinds, size) as setting:
            report = benchmark.run(setting)
        found[name] = {"size": size, "unit": benchmark.unit, **asdict(report)}
        if not asked.json:
            print(f"\n{table(report)}", flush=True)
    if asked.json:
        print(json.dumps({"machine": machine(), "benchmarks": found}, indent=2))


if __name__ == "__main__":
    main()
