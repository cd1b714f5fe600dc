"""An hourly count by type over 20,000,000 simulated events: from a rollup, and from the raw events, both through psql."""

import subprocess

from harness import Figure, node, psql, psql_ms, scratch, wait_until

EVENTS = 20_000_000
SELECT = "SELECT time_bucket('1 hour', event_time) AS bucket, event_type, count(*) AS events FROM events GROUP BY 1, 2"


def run(tools, repeats=5):
    raw, kept = Figure("20M events, hourly count by type: raw, ms"), Figure("the same from the rollup, ms")
    ratio, first = Figure("raw / rollup", goal=(">=", 50.0)), Figure("the first read after a restart, ms")
    ordered = "SELECT bucket, event_type, events FROM per_hour ORDER BY 1, 2"
    with scratch() as folder:
        measure(tools, folder, ordered, repeats, raw, kept, ratio)
        for _ in range(repeats):
            # Nothing is kept in memory yet, and what the log has behind the store is applied: a trivial read waits for it.
            with node(tools, folder) as server:
                psql(server.pg, "bench", "SELECT count(*) FROM state")
                first.values.append(psql_ms(server.pg, "bench", ordered)[1])
    return [raw, kept, ratio, first]


def measure(tools, folder, ordered, repeats, raw, kept, ratio):
    with node(tools, folder) as server:
        simulated = subprocess.Popen([tools.workload, "--events", str(EVENTS)], stdout=subprocess.PIPE)
        load = [tools.galoo, "import", "--addr", server.grpc, "--game", "bench", "--source", "simulated", "-"]
        subprocess.run(load, stdin=simulated.stdout, check=True, stdout=subprocess.DEVNULL)
        if simulated.wait() != 0:
            raise SystemExit("galoo-workload failed")
        psql(server.pg, "bench", f"CREATE ROLLUP per_hour AS {SELECT}")

        def covered():
            shards = tools.report(tools.galoo, "status", "--addr", server.grpc, "--json")["shards"]
            return all(shard["chunks"] == 0 for shard in shards) and psql_ms(server.pg, "bench", ordered)[1] < 1_000

        wait_until(covered, 1_200, "the rollup covers what is sealed")
        for _ in range(repeats):
            from_raw, raw_ms = psql_ms(server.pg, "bench", f"SELECT * FROM ({SELECT}) AS raw ORDER BY 1, 2")
            from_rollup, rollup_ms = psql_ms(server.pg, "bench", ordered)
            if from_raw != from_rollup or not from_raw:
                raise SystemExit("the rollup and the raw events differ")
            raw.values.append(raw_ms)
            kept.values.append(rollup_ms)
            ratio.values.append(raw_ms / rollup_ms)
