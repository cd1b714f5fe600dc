#!/usr/bin/env python3
"""Runs the figures of docs/benchmarks.md and ends with a table; exit code 1 when one is missed.

Usage: run.py GALOO GALOO_BENCH GALOO_WORKLOAD DATA [ONLY]    (duckdb from PyPI, psql and etcd from Debian; Linux)
"""

import sys

import load
import reads
import rollup
import storage
import writes
from harness import Tools, table

BENCHMARKS = {"load": load, "rollup": rollup, "reads": reads, "writes": writes, "storage": storage}


def main():
    galoo, bench, workload, data, *only = sys.argv[1:]
    unknown = [name for name in only if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    tools = Tools(galoo, bench, workload, data)
    figures = []
    for name in only or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name].__doc__.strip().splitlines()[0]}", flush=True)
        figures += BENCHMARKS[name].run(tools)
    sys.exit(1 if table(figures) else 0)


if __name__ == "__main__":
    main()
