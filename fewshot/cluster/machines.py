"""Ray started here or joined, and how its processors are divided among workers."""

from __future__ import annotations

import logging
import os
import socket
from typing import NamedTuple

import ray

from jclip import runtime

from ..encoder import MAX_READERS
from ..errors import TaskError

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 10.0
START = "start it with: ray start --head; on the other machines: ray start --address=HOST:6379"
PROBLEMS = {LOCAL: "Ray does not start here", AUTO: f"no Ray runs on this machine; {START}"}
NOT_JOINED = (
    "cannot be joined; this machine must belong to the cluster (ray start --address=HOST:6379) and have its token "
    "(~/.ray/auth_token)"
)
# What a client of HTTP/2, and so of gRPC, sends first (RFC 9113, 3.4), and the frame that the server sends first, too
HTTP2_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HTTP2_SETTINGS
OBJECT_STORE = 256 * 2**20  # bytes of shared memory for Ray on this machine: what is on its way to workers
MAX_CPUS = 8  # of a worker, unless fewer workers are asked for: a batch of 32 does not keep more threads busy
USEFUL = 0.9  # part of the processors that larger workers must use to be preferred to smaller ones


class Plan(NamedTuple):
    """How the workers of a cluster look."""

    workers: int
    cpus: int  # of each
    device: str


def connect(address: str) -> None:
    """Start Ray on this machine, for "local", or join the cluster of an address: "auto" or HOST:PORT.

    Raises
    ------
    TaskError
        If there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet = dict(log_to_driver=False, logging_level=logging.ERROR)
    if hasattr(ray._private.worker, "print_to_stdstream"):
        # Otherwise Ray prints a paragraph on stdout for each worker that dies, about which the driver has a line.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    here = dict(num_cpus=_cores(), include_dashboard=False, object_store_memory=OBJECT_STORE)
    if runtime.cuda_problem():
        here["num_gpus"] = 0  # Ray would count a GPU that Jittor cannot use
    if address not in (LOCAL, AUTO):
        _check_port(address)
    try:
        ray.init(address, **quiet, **(here if address == LOCAL else {}))
    except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and others
        raise TaskError(f"--cluster {address}: {PROBLEMS.get(address, NOT_JOINED)} ({_first_line(error)})") from None


def _check_port(address: str) -> None:
    """Raise TaskError if no server of gRPC, which Ray speaks, answers: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            connection.sendall(HTTP2_PREFACE)
            answer = b"" if os.environ.get("RAY_USE_TLS") == "1" else connection.recv(len(HTTP2_SETTINGS))
    except (OSError, OverflowError) as error:
        raise TaskError(
            f"--cluster {address}: no Ray answers there ({getattr(error, 'strerror', None) or error}); {START}"
        ) from None
    if answer and answer[3:4] != HTTP2_SETTINGS[3:4]:
        raise TaskError(f"--cluster {address}: what answers there is not Ray; give the address that ray start printed")


def plan(workers: int | None, device: str) -> Plan:
    """Divide the processors of the cluster among workers of the same size.

    Parameters
    ----------
    workers : int or None
        How many are asked for; where the cluster has room for fewer, there are fewer. None takes a worker for each GPU,
        or workers of up to MAX_CPUS processors.
    device : "auto", "cpu" or "cuda"
        "auto" takes CUDA if the cluster has GPUs.

    Raises
    ------
    TaskError
        If CUDA is asked for and no machine has a GPU, or if no machine has a processor for a worker.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = {i: int(node.get("GPU", 0)) for i, node in enumerate(nodes)}
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    if device == "cuda" and not any(gpus.values()):
        raise TaskError("--device cuda: no machine of the cluster has a GPU that Ray knows; run with --device cpu")
    if device != "cpu" and any(gpus.values()):
        share = min(max(1, cpus[i] // n) for i, n in gpus.items() if n)
        return Plan(min(workers or sum(gpus.values()), sum(gpus.values())), min(share, MAX_READERS["cuda"]), "cuda")
    if not any(cpus):
        raise TaskError("no machine of the cluster has a CPU that Ray knows; start Ray with --num-cpus")
    return Plan(*divide(cpus, workers), "cpu")


def divide(cpus: list[int], workers: int | None) -> tuple[int, int]:
    """Return how many workers there are, and how many processors each has, on nodes with so many processors.

    >>> divide([2], None), divide([2], 2), divide([2], 5), divide([64], None), divide([4, 16], None)
    ((1, 2), (2, 1), (2, 1), (8, 8), (5, 4))
    """
    room = {share: sum(n // share for n in cpus) for share in range(1, max(cpus) + 1)}
    if workers:
        fitting = [share for share, n in room.items() if n >= workers]
        return (workers, max(fitting)) if fitting else (room[1], 1)
    sizes = [share for share in room if share <= MAX_CPUS]
    most = max(share * room[share] for share in sizes)
    share = max(share for share in sizes if share * room[share] >= USEFUL * most)
    return room[share], share


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
