#!/usr/bin/env python3
"""Times the import of a file into one node beside DuckDB's load of the same file, interleaved, and prints a table.

Usage: import.py GALOO FILE [REPEATS]    (needs duckdb from PyPI; Linux)

Each repeat, on fresh folders of the same disk: a bare loop of 300 fdatasyncs of 4 KiB (their median), DuckDB with two
threads and sample_size=-1 into a table of a database file, Galoo's server and `galoo import` until it returns, that is
until every batch is synced in the log, applied and answered. Exit code 1 when a goal is missed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

# The import takes at most so many times DuckDB's load; the processes stay below so many MiB.
RATIO_MAX, NODE_MIB_MAX, IMPORTER_MIB_MAX = 4.0, 1536, 200


def fdatasync_ms(folder):
    descriptor = os.open(f"{folder}/sync", os.O_CREAT | os.O_WRONLY)
    block, times = b"x" * 4096, []
    for place in range(300):
        os.pwrite(descriptor, block, place * 4096)
        begin = time.perf_counter()
        os.fdatasync(descriptor)
        times.append(time.perf_counter() - begin)
    os.close(descriptor)
    return statistics.median(times) * 1e3


# In a process of its own: Linux counts a parent's memory at the fork towards its child's peak.
DUCKDB_LOAD = """
import sys, time, duckdb
begin = time.perf_counter()
connection = duckdb.connect(sys.argv[1])
connection.execute("set threads = 2")
read = "read_json(?, format = 'newline_delimited', sample_size = -1)"
connection.execute(f"create table e as select * from {read}", [sys.argv[2]])
connection.close()
print(time.perf_counter() - begin)
"""


def duckdb_seconds(folder, file):
    load = [sys.executable, "-c", DUCKDB_LOAD, f"{folder}/duckdb", file]
    return float(subprocess.run(load, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def peak_mib(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def galoo_run(folder, galoo, file):
    any_port = [part for flag in ("--grpc", "--pg", "--http") for part in (flag, "127.0.0.1:0")]
    with open(f"{folder}/stderr", "w") as stderr:
        command = [galoo, "server", "--data-dir", f"{folder}/galoo", *any_port]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        ready = server.stdout.readline()
        address = next(word[5:] for word in ready.split() if word.startswith("grpc="))
        begin = time.perf_counter()
        importer = subprocess.Popen(
            [galoo, "import", "--addr", address, "--game", "bench", "--json", file], stdout=subprocess.PIPE, text=True
        )
        report = json.loads(importer.stdout.read())
        _, status, usage = os.wait4(importer.pid, 0)
        seconds = time.perf_counter() - begin
        if status != 0 or report["events_stored"] != report["lines"]:
            raise SystemExit(f"the import failed: {report}")
        return seconds, peak_mib(server.pid), usage.ru_maxrss / 1024
    finally:
        server.terminate()
        server.wait(60)


def main():
    galoo, file = sys.argv[1], sys.argv[2]
    repeats = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    rows = []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            sync, duck = fdatasync_ms(folder), duckdb_seconds(folder, file)
            seconds, node, importer = galoo_run(folder, galoo, file)
        rows.append((sync, duck, seconds, seconds / duck, node, importer))
        print(f"repeat {repeat + 1}: fdatasync {sync:.2f} ms, DuckDB {duck:.2f} s, Galoo {seconds:.2f} s", flush=True)
    figures = [
        ("fdatasync, p50 in ms", None),
        ("DuckDB's load, s", None),
        ("Galoo's import, s", None),
        ("import / load", RATIO_MAX),
        ("node's memory, MiB", NODE_MIB_MAX),
        ("importer's memory, MiB", IMPORTER_MIB_MAX),
    ]
    missed = False
    print(f"{'figure':26}{'goal':>10}{'median':>10}{'min':>10}{'max':>10}{'repeats':>9}  result")
    for place, (name, goal) in enumerate(figures):
        values = [row[place] for row in rows]
        median = statistics.median(values)
        result = "" if goal is None else "met" if median <= goal else "missed"
        missed |= result == "missed"
        goal_text = "" if goal is None else f"<= {goal:g}"
        print(f"{name:26}{goal_text:>10}{median:10.2f}{min(values):10.2f}{max(values):10.2f}{repeats:9}  {result}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
