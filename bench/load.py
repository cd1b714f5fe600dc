"""Import of a file into one node beside DuckDB's load of the same file, and the bytes at rest afterwards.

Each repeat, on fresh folders of one disk: a bare fdatasync loop, DuckDB with two threads and sample_size=-1 into a table of
a database file, `galoo import` until it returns, that is until every batch is synced in the log, applied and answered; then
the node seals, builds its segments and sweeps, and its data folder is measured without the replicated log (which is cut by
its own bound), beside DuckDB's Parquet (LZ4_RAW) of the bare rows, sorted by player and time.
"""

import json
import os
import subprocess
import time

from harness import SETTLED, Figure, folder_bytes, node, python, scratch, wait_until

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
DUCKDB_PARQUET = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
columns = [name for name, *_ in connection.execute("describe e").fetchall()]
order = [name for name in ("player", "player_id", "t", "time", "event_time", "ts", "ts_ms") if name in columns]
by = " order by " + ", ".join(f'"{name}"' for name in order) if order else ""
connection.execute(f"copy (select * from e{by}) to '{sys.argv[2]}' (format parquet, compression lz4_raw)")
"""


def run(tools, repeats=5):
    sync, duck, own = Figure("fdatasync, p50 in ms"), Figure("DuckDB's load, s"), Figure("Galoo's import, s")
    ratio = Figure("import / DuckDB's load", goal=("<=", 4.0))
    node_mib = Figure("node's memory, MiB", goal=("<=", 1536.0))
    importer_mib = Figure("importer's memory, MiB", goal=("<=", 200.0))
    bare = Figure("DuckDB's Parquet of the rows, bytes an event")
    rest = Figure("at rest, bytes an event")
    rest_ratio = Figure("at rest / DuckDB's Parquet", goal=("<=", 1.8))
    for repeat in range(repeats):
        with scratch() as folder:
            sync.values.append(tools.fdatasync_ms(folder))
            duck.values.append(float(python(DUCKDB_LOAD, f"{folder}/duckdb", tools.data).split()[-1]))
            python(DUCKDB_PARQUET, f"{folder}/duckdb", f"{folder}/bare.parquet")
            with open(f"{folder}/config.toml", "w") as config:
                config.write(SETTLED)
            with node(tools, folder, "--config", f"{folder}/config.toml") as server:
                begin = time.perf_counter()
                command = [tools.galoo, "import", "--addr", server.grpc, "--game", "bench", "--json", tools.data]
                importer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                report = json.loads(importer.stdout.read())
                _, status, usage = os.wait4(importer.pid, 0)
                own.values.append(time.perf_counter() - begin)
                if status != 0 or report["events_stored"] != report["lines"]:
                    raise SystemExit(f"the import failed: {report}")
                events = report["lines"]

                def settled():
                    shards = tools.report(tools.galoo, "status", "--addr", server.grpc, "--json")["shards"]
                    return all(shard["chunks"] == 0 for shard in shards)

                wait_until(settled, 120, "all chunks become segments")
                data = [f"{folder}/galoo/data", f"{folder}/galoo/segments"]
                # The sweep of what lies dead comes ten seconds after the last segment.
                time.sleep(15)
                rest.values.append(sum(map(folder_bytes, data)) / events)
                node_mib.values.append(server.peak_mib())
            bare.values.append(os.path.getsize(f"{folder}/bare.parquet") / events)
            importer_mib.values.append(usage.ru_maxrss / 1024)
            ratio.values.append(own.values[-1] / duck.values[-1])
            rest_ratio.values.append(rest.values[-1] / bare.values[-1])
        print(f"load {repeat + 1}: DuckDB {duck.values[-1]:.2f} s, Galoo {own.values[-1]:.2f} s", flush=True)
    return [sync, duck, own, ratio, node_mib, importer_mib, bare, rest, rest_ratio]
