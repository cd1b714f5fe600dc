"""The engine by itself beside bare RocksDB and PostgreSQL; what ingest writes to the disk; bytes at rest; writes while all
is merged.

Each repeat, on fresh folders of one disk. Without network and log (`galoo-bench engine`): events that one thread applies
beside puts of the rows that they became, without a write-ahead log; the same for a minute as fast as segments are built,
with three rollups and without; the newest value of a cell beside a bare get; a player's 1,000 events from segments beside
PostgreSQL's execution time with an index on (player, time). With a node: bytes at rest of a file after everything is
merged, beside DuckDB's Parquet with ZSTD; bytes written to the device for 20,000 events a second (GALOO_BENCH_INGEST_SECONDS,
600); the 99th percentile of writes while everything is merged, beside before.
"""

import contextlib
import glob
import json
import os
import shutil
import subprocess
import time

from harness import SETTLED, Figure, folder_bytes, node, python, scratch, wait_until

DUCKDB_ZSTD = """
import sys, duckdb
connection = duckdb.connect()
connection.execute("set threads = 2")
connection.execute("create table e as select * from read_json(?, format = 'newline_delimited', sample_size = -1)", [sys.argv[1]])
columns = [name for name, *_ in connection.execute("describe e").fetchall()]
player = next(name for name in ("player", "player_id") if name in columns)
at = next(name for name in ("t", "time", "event_time", "ts", "ts_ms") if name in columns)
connection.execute(f"copy (select * from e order by {player}, {at}) to '{sys.argv[2]}' (format parquet, compression zstd)")
"""
INGEST_SECONDS = int(os.environ.get("GALOO_BENCH_INGEST_SECONDS", "600"))
EVENT_BYTES = 200


@contextlib.contextmanager
def postgres(folder):
    """A PostgreSQL server; yields psql's arguments."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [os.path.dirname(shutil.which("postgres") or "")]
    if not os.path.exists(f"{found[-1]}/initdb"):
        raise SystemExit("PostgreSQL is missing: apt-get install postgresql")
    as_user = [] if os.getuid() else ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    os.makedirs(f"{folder}/pg")
    if as_user:
        os.chmod(folder, 0o755)
        shutil.chown(f"{folder}/pg", "postgres", "postgres")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*as_user, f"{found[-1]}/initdb", "-D", f"{folder}/pg/data", "-U", "bench", "-A", "trust"], check=True, **quiet)
    flags = ["-D", f"{folder}/pg/data", "-k", f"{folder}/pg", "-c", "listen_addresses=", "-c", "shared_buffers=1GB"]
    server = subprocess.Popen([*as_user, f"{found[-1]}/postgres", *flags], **quiet)
    arguments = ["psql", "-XAtq", "-h", f"{folder}/pg", "-U", "bench", "postgres"]
    try:
        ready = lambda: subprocess.run([*arguments, "-c", "select 1"], **quiet).returncode == 0
        wait_until(ready, 60, "PostgreSQL is ready")
        yield arguments
    finally:
        server.terminate()
        server.wait(60)


def postgres_range_ms(folder, text, repeats=200):
    """The median execution time of all events of a player with 1,000."""
    with postgres(folder) as psql:
        run = lambda *commands: subprocess.run(
            [*psql, *(part for command in commands for part in ("-c", command))], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        run("create table e (player text, t bigint, kind text, seq bigint, properties text)")
        run(f"\\copy e from '{text}'", "create index on e (player, t)", "vacuum analyze e")
        explain = "explain (analyze, timing off, format json) select * from e where player = 'player-{:06}' order by t"
        plans = run(*(explain.format(place * 7 % 1_000) for place in range(repeats)))
        times = []
        decoder, at = json.JSONDecoder(), 0
        while at < len(plans.rstrip()):
            plan, at = decoder.raw_decode(plans, at)
            at += 1
            times.append(plan[0]["Execution Time"])
        return sorted(times)[len(times) // 2]


def written_bytes(server):
    with open(f"/proc/{server.process.pid}/io") as io:
        return next(int(line.split()[1]) for line in io if line.startswith("write_bytes"))


def engine(tools, what, *flags):
    with scratch() as folder:
        return tools.report(tools.bench, "engine", what, "--folder", folder, *flags)


def run(tools, repeats=5):
    puts, applied = Figure("bare RocksDB, puts/s"), Figure("apply, events/s")
    apply_ratio = Figure("apply / bare puts", goal=(">=", 0.6))
    plain, rolled = Figure("sustained, events/s"), Figure("sustained with three rollups, events/s")
    sustain_ratio = Figure("with / without rollups", goal=(">=", 0.85))
    gets, reads = Figure("bare RocksDB, gets/s"), Figure("point read, reads/s")
    read_ratio = Figure("point read / bare get", goal=(">=", 0.5))
    theirs, own = Figure("PostgreSQL, 1,000 events of a player, p50 in ms"), Figure("the same from segments, p50 in ms")
    range_ratio = Figure("range / PostgreSQL's", goal=("<=", 0.5))
    for repeat in range(repeats):
        found = engine(tools, "apply")
        puts.values.append(found["puts_per_second"])
        applied.values.append(found["events_per_second"])
        apply_ratio.values.append(applied.values[-1] / puts.values[-1])
        plain.values.append(engine(tools, "sustain")["events_per_second"])
        rolled.values.append(engine(tools, "sustain", "--rollups")["events_per_second"])
        sustain_ratio.values.append(rolled.values[-1] / plain.values[-1])
        found = engine(tools, "read")
        gets.values.append(found["gets_per_second"])
        reads.values.append(found["reads_per_second"])
        read_ratio.values.append(reads.values[-1] / gets.values[-1])
        with scratch() as folder:
            text = f"{folder}/events.tsv"
            own.values.append(tools.report(tools.bench, "engine", "range", "--folder", f"{folder}/galoo", "--text", text)["p50_ms"])
            theirs.values.append(postgres_range_ms(folder, text))
        range_ratio.values.append(own.values[-1] / theirs.values[-1])
        print(f"storage {repeat + 1}: {applied.values[-1]:,.0f} events/s applied", flush=True)
    engine_figures = [puts, applied, apply_ratio, plain, rolled, sustain_ratio, gets, reads, read_ratio, theirs, own, range_ratio]
    return engine_figures + at_rest(tools) + ingest(tools) + merging(tools, repeats)


def at_rest(tools):
    """Of the file of `make bench`, once: it is the same every time."""
    bare, rest = Figure("DuckDB's Parquet with ZSTD, bytes an event"), Figure("at rest, merged, bytes an event")
    ratio = Figure("merged / DuckDB's Parquet with ZSTD", goal=("<=", 1.5))
    with scratch() as folder:
        python(DUCKDB_ZSTD, tools.data, f"{folder}/bare.parquet")
        with open(f"{folder}/config.toml", "w") as config:
            config.write(SETTLED)
        with node(tools, folder, "--config", f"{folder}/config.toml") as server:
            command = [tools.galoo, "import", "--addr", server.grpc, "--game", "bench", "--json", tools.data]
            events = tools.report(*command)["lines"]
            subprocess.run([tools.galoo, "compact", "--addr", server.grpc, "--game", "bench"], check=True, stdout=subprocess.DEVNULL)
            # At rest is when files of what was merged are gone, a minute after it, and what lies dead was swept.
            time.sleep(90)
            rest.values.append(sum(folder_bytes(f"{folder}/galoo/{part}") for part in ("data", "segments")) / events)
        bare.values.append(os.path.getsize(f"{folder}/bare.parquet") / events)
    ratio.values.append(rest.values[-1] / bare.values[-1])
    return [bare, rest, ratio]


def ingest(tools, rate=20_000):
    """Bytes that the device is given for each event, the replicated log included."""
    written = Figure(f"device bytes / event's bytes, {INGEST_SECONDS} s", goal=("<=", 3.0))
    reached = Figure("events/s meanwhile")
    with scratch() as folder, node(tools, folder) as server:
        load = [tools.galoo, "bench", "append", "--json", "--addr", server.grpc, "--batch", "100", "--rate", str(rate / 100)]
        before = written_bytes(server)
        report = tools.report(*load, "--event-bytes", str(EVENT_BYTES), "--seconds", str(INGEST_SECONDS), "--warm-up-seconds", "0")
        reached.values.append(report["calls_per_second"] * 100)
        # What is in memory is written too in the end.
        pid = server.process.pid
        server.process.terminate()
        while os.path.exists(f"/proc/{pid}/io"):
            with contextlib.suppress(OSError, StopIteration):
                after = written_bytes(server)
            if server.process.poll() is not None:
                break
            time.sleep(0.01)
    written.values.append((after - before) / (report["calls"] * 100 * EVENT_BYTES))
    return [written, reached]


def merging(tools, repeats):
    """Single writes while all segments are merged into new ones, and before."""
    quiet, busy = Figure("write, quiet, p99 in ms"), Figure("write while all is merged, p99 in ms")
    ratio = Figure("merging / quiet", goal=("<=", 1.5))
    for _ in range(repeats):
        with scratch() as folder, node(tools, folder) as server:
            command = [tools.galoo, "import", "--addr", server.grpc, "--game", "filled", "--json", tools.data]
            tools.report(*command)
            # What was imported becomes segments.
            time.sleep(10)
            load = [tools.galoo, "bench", "append", "--json", "--addr", server.grpc, "--batch", "1", "--in-flight", "4"]
            quiet.values.append(tools.report(*load, "--seconds", "10")["p99_ms"])
            merge = subprocess.Popen([tools.galoo, "compact", "--addr", server.grpc, "--game", "filled"], stdout=subprocess.DEVNULL)
            busy.values.append(tools.report(*load, "--seconds", "10")["p99_ms"])
            if merge.poll() is not None:
                print("storage: the merge ended before the writes beside it", flush=True)
            if merge.wait(600) != 0:
                raise SystemExit("galoo compact failed")
        ratio.values.append(busy.values[-1] / quiet.values[-1])
    return [quiet, busy, ratio]
