"""Durable writes on three nodes beside a three-node etcd on the same disk and cores, interleaved, a bare fdatasync loop
beside them. 64 calls in flight over 9 connections for both, three to each node."""

import contextlib
import shutil
import subprocess
import urllib.request

from harness import Figure, cluster, free_ports, scratch, wait_until


@contextlib.contextmanager
def etcd(folder):
    binary = shutil.which("etcd")
    if binary is None:
        raise SystemExit("etcd is missing: apt-get install etcd-server")
    ports = free_ports(6)
    peers = ",".join(f"e{place}=http://127.0.0.1:{ports[place]}" for place in range(3))
    processes = []
    try:
        for place in range(3):
            peer, client = f"http://127.0.0.1:{ports[place]}", f"http://127.0.0.1:{ports[3 + place]}"
            command = [binary, "--name", f"e{place}", "--data-dir", f"{folder}/etcd{place}"]
            command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
            command += ["--listen-client-urls", client, "--advertise-client-urls", client]
            command += ["--initial-cluster", peers, "--initial-cluster-state", "new", "--log-level", "error"]
            command += ["--quota-backend-bytes", str(8 << 30)]
            log = open(f"{folder}/etcd{place}.log", "w")
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        addrs = [f"127.0.0.1:{port}" for port in ports[3:]]

        def healthy():
            try:
                return all(urllib.request.urlopen(f"http://{addr}/health", timeout=1).status == 200 for addr in addrs)
            except OSError:
                return False

        wait_until(healthy, 60, "etcd is healthy")
        yield addrs
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def run(tools, repeats=5):
    sync = Figure("fdatasync, p50 in ms")
    put, txn = Figure("etcd, single puts/s"), Figure("etcd, rows/s in transactions of 100 puts")
    batched, single = Figure("Galoo, events/s, 100 a call"), Figure("Galoo, events/s, one a call")
    against_put = Figure("100 a call / etcd's puts", goal=(">=", 20.0))
    against_txn = Figure("100 a call / etcd's rows in transactions", goal=(">=", 2.0))
    against_single = Figure("one a call / etcd's puts", goal=(">=", 2.0))
    for repeat in range(repeats):
        with scratch() as folder:
            sync.values.append(tools.fdatasync_ms(folder))
            with etcd(folder) as addrs:
                peers = ["--addrs", ",".join(addrs)]
                put.values.append(tools.report(tools.bench, "etcd", *peers)["calls_per_second"])
                txn.values.append(tools.report(tools.bench, "etcd", "--puts", "100", *peers)["calls_per_second"] * 100)
            with cluster(tools, folder) as nodes:
                load = [tools.galoo, "bench", "append", "--json", "--addr", ",".join(one.grpc for one in nodes)]
                batched.values.append(tools.report(*load, "--batch", "100")["calls_per_second"] * 100)
                single.values.append(tools.report(*load, "--batch", "1")["calls_per_second"])
        against_put.values.append(batched.values[-1] / put.values[-1])
        against_txn.values.append(batched.values[-1] / txn.values[-1])
        against_single.values.append(single.values[-1] / put.values[-1])
        print(f"writes {repeat + 1}: etcd {put.values[-1]:,.0f} puts/s, Galoo {batched.values[-1]:,.0f} events/s", flush=True)
    return [sync, put, txn, batched, single, against_put, against_txn, against_single]
