"""What every benchmark needs: nodes and clusters of Galoo on free ports, a bare fdatasync loop, and figures with goals."""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field


# A node's configuration with which what was imported becomes segments at once.
SETTLED = """
[storage]
seal_age_ms = 3000
segment_age_ms = 3000
"""


@dataclass
class Figure:
    """A measured figure; `goal` is ("<=" or ">=", number), or None where there is none."""

    name: str
    values: list = field(default_factory=list)
    goal: tuple | None = None

    def missed(self):
        if self.goal is None:
            return False
        sense, bound = self.goal
        median = statistics.median(self.values)
        return median > bound if sense == "<=" else median < bound


def table(figures):
    """Prints the figures; returns whether one missed its goal."""
    print(f"{'figure':46}{'goal':>10}{'median':>12}{'min':>12}{'max':>12}{'repeats':>9}  result")
    for figure in figures:
        median = statistics.median(figure.values)
        result = "" if figure.goal is None else "missed" if figure.missed() else "met"
        goal = "" if figure.goal is None else f"{figure.goal[0]} {figure.goal[1]:g}"
        least, most = min(figure.values), max(figure.values)
        numbers = "".join(f"{value:12,.2f}" for value in (median, least, most))
        print(f"{figure.name:46}{goal:>10}{numbers}{len(figure.values):9}  {result}")
    return any(figure.missed() for figure in figures)


class Tools:
    """The binaries that are measured, and where data and scratch files are."""

    def __init__(self, galoo, bench, workload, data):
        self.galoo, self.bench, self.workload, self.data = galoo, bench, workload, data

    def report(self, *command):
        """Runs a command that prints one JSON object last and returns it."""
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])

    def fdatasync_ms(self, folder):
        """The median of 300 fdatasyncs of 4 KiB on the disk of a folder."""
        return self.report(self.bench, "fdatasync", "--file", f"{folder}/sync")["p50_ms"]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Node:
    """A server process; `grpc` and `pg` are its addresses once it is ready."""

    def __init__(self, tools, folder, *flags, grpc="127.0.0.1:0"):
        self.log = open(f"{folder}.log", "w")
        ports = ["--grpc", grpc, "--pg", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        command = [tools.galoo, "server", "--data-dir", folder, *ports, *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def ready(self):
        for line in self.process.stdout:
            if line.startswith("galoo ready"):
                words = dict(word.split("=", 1) for word in line.split() if "=" in word)
                self.grpc, self.pg = words["grpc"], words["pg"]
                return self
        raise SystemExit(f"the server ended: see {self.log.name}")

    def peak_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


@contextlib.contextmanager
def node(tools, folder, *flags):
    one = Node(tools, f"{folder}/galoo", *flags)
    try:
        yield one.ready()
    finally:
        one.stop()


@contextlib.contextmanager
def cluster(tools, folder, count=3):
    """A cluster of nodes on one machine; yields them."""
    addrs = [f"127.0.0.1:{port}" for port in free_ports(count)]
    nodes = [Node(tools, f"{folder}/n{place}", "--join", ",".join(addrs), grpc=addr) for place, addr in enumerate(addrs)]
    try:
        for one in nodes:
            one.process.stdout.readline()
        subprocess.run([tools.galoo, "cluster", "init", "--addr", addrs[0]], check=True, stdout=subprocess.DEVNULL)
        yield [one.ready() for one in nodes]
    finally:
        for one in nodes:
            one.stop()


@contextlib.contextmanager
def scratch():
    """A folder on the disk that is measured (TMPDIR names another)."""
    with tempfile.TemporaryDirectory(prefix="galoo-bench-") as folder:
        yield folder


def psql(pg, database, *commands):
    """Runs statements in one session of psql and returns what it printed, unaligned."""
    host, port = pg.rsplit(":", 1)
    flags = [part for command in commands for part in ("-c", command)]
    command = ["psql", "-XAt", f"postgresql://galoo@{host}:{port}/{database}", *flags]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def psql_ms(pg, database, sql):
    """Returns what a statement answers and the milliseconds that psql's \\timing says that it took."""
    printed = psql(pg, database, "\\timing on", sql).splitlines()
    rows = [line for line in printed if not line.startswith(("Timing is on", "Time:"))]
    times = [line for line in printed if line.startswith("Time:")]
    return rows, float(times[-1].split()[1])


def python(script, *arguments):
    """Runs a script in a process of its own, and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def folder_bytes(folder):
    files = (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
    return sum(os.stat(file).st_blocks * 512 for file in files if os.path.exists(file))


def wait_until(holds, seconds, what):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.5)
