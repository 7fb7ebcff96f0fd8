"""The rate at which gradients are summed: one process per GPU of a machine, or one per node of a cluster.

The rate is that of the bus, 2 (n - 1) / n x bytes / seconds, which for a ring does not depend on the number of
processes (NVIDIA's nccl-tests, doc/PERFORMANCE.md).
"""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from altdiffusion.doctor.line import FAIL, OK, WARN, Line
from altdiffusion.errors import first_line

TIMEOUT_S = 120.0
REPEATS = 5
SLOW_GB_S = 1.0
"""GB/s below which NCCL is likely to use TCP where there is a faster network."""


def check_all_reduce(mib: int = 64) -> Iterator[Line]:
    """Measure the sum among this machine's GPUs, or among two processes where it has none."""
    import torch

    gpus = torch.cuda.device_count()
    world, backend = (gpus, "nccl") if gpus > 1 else (2, "gloo")
    if gpus == 1:
        yield Line(OK, "all-reduce", "one GPU: nothing to sum; --nodes measures between nodes")
        return
    context = torch.multiprocessing.get_context("spawn")
    results: Any = context.SimpleQueue()
    port = free_port()
    processes = [
        context.Process(target=_report, args=(results, rank, world, f"127.0.0.1:{port}", backend, mib), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    ends = time.monotonic() + TIMEOUT_S
    for process in processes:
        process.join(max(0.0, ends - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    found = [] if results.empty() else [results.get()]
    yield line(
        found[0] if found else f"no answer within {TIMEOUT_S:g} s", world, backend, "GPUs" if gpus else "processes"
    )


def line(found: float | str, world: int, backend: str, of: str) -> Line:
    """Return the line for a measured rate in GB/s, or for the text of an error."""
    name = "all-reduce"
    if isinstance(found, str):
        remedy = "set NCCL_DEBUG=INFO and run it again" if backend == "nccl" else "open all ports among the nodes"
        return Line(FAIL, name, f"{backend}, {world} {of}: {found}", remedy)
    text = f"{found:,.1f} GB/s ({backend}, {world} {of})"
    if backend == "nccl" and found < SLOW_GB_S:
        return Line(WARN, name, text, "set NCCL_DEBUG=INFO: it should name NVLink, IB or EFA (OFI), not Socket")
    return Line(OK, name, text)


def rate(rank: int, world: int, address: str, backend: str, mib: int) -> float:
    """Sum a tensor with the other processes, and return the rate of the bus in GB/s.

    Args:
        rank: number of this process.
        world: number of processes.
        address: `host:port` at which process 0 listens.
        backend: `nccl` or `gloo`.
        mib: MiB of the float32 tensor.
    """
    import torch
    import torch.distributed as distributed

    if backend == "nccl":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    device = "cuda" if backend == "nccl" else "cpu"
    limit = datetime.timedelta(seconds=TIMEOUT_S)
    distributed.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=world, timeout=limit)
    try:
        tensor = torch.ones(mib * 2**18, device=device)
        distributed.all_reduce(tensor)  # connects
        seconds = []
        for _ in range(REPEATS):
            tensor.fill_(1.0)
            distributed.barrier()
            began = time.perf_counter()
            distributed.all_reduce(tensor)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            if tensor[0].item() != world or tensor[-1].item() != world:
                raise ArithmeticError(f"the sum of {world} ones is {tensor[0].item():g}")
    finally:
        distributed.destroy_process_group()
    return float(2 * (world - 1) / world * tensor.numel() * 4 / median(seconds) / 1e9)


def free_port() -> int:
    """Return a port of this machine that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _report(results: Any, rank: int, *arguments: Any) -> None:
    try:
        found: float | str = rate(rank, *arguments)
    except Exception as error:
        found = first_line(error)
    if rank == 0:
        results.put(found)
