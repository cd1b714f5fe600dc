"""A point read of a player's state through the client, linearizable, one in flight, beside a bare gRPC echo."""

from harness import Figure, node, scratch

ONE = ["--connections", "1", "--in-flight", "1", "--seconds", "5"]


def run(tools, repeats=5):
    echo, read = Figure("bare gRPC echo, p50 in ms"), Figure("point read, p50 in ms")
    ratio = Figure("point read / echo", goal=("<=", 3.0))
    with scratch() as folder, node(tools, folder) as server:
        for _ in range(repeats):
            echo.values.append(tools.report(tools.bench, "echo", *ONE)["p50_ms"])
            read.values.append(tools.report(tools.galoo, "bench", "get", "--addr", server.grpc, "--json", *ONE)["p50_ms"])
            ratio.values.append(read.values[-1] / echo.values[-1])
    return [echo, read, ratio]
