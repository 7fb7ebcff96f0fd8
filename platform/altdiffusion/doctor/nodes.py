"""Every node of a cluster: the checks of a machine on each, and what the nodes must have in common."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from altdiffusion.doctor import all_reduce, clock
from altdiffusion.doctor.line import FAIL, OK, WARN, Line
from altdiffusion.doctor.machine import Wanted, check_machine
from altdiffusion.doctor.versions import SHOWN, installed
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.each_node import Node, alive_nodes, on_each
from altdiffusion.storage import files

TIMEOUT_S = 180.0


def check_nodes(wanted: Wanted, *, sums: bool = False) -> list[Line]:
    """Return the lines of every node of the cluster that this process has joined, and those of all together.

    Args:
        sums: whether to measure the sum of a tensor between the nodes.
    """
    nodes = alive_nodes()
    lines: list[Line] = []
    versions: dict[str, dict[str, str]] = {}
    with _mark(wanted.lake) as mark:
        answers = on_each(nodes, _look, [(wanted, mark)] * len(nodes), timeout_s=TIMEOUT_S)
    for node, answer in zip(nodes, answers, strict=True):
        if isinstance(answer, AltDiffusionError):
            lines.append(Line(FAIL, "node", answer.problem, answer.remedy, node.name))
            continue
        found, versions[node.name] = answer
        lines += [replace(line, node=node.name) for line in found]
    lines += _same_versions(versions)
    lines += _clocks(nodes)
    if sums:
        lines += _sums(nodes)
    return lines


def _look(wanted: Wanted, mark: str | None) -> tuple[list[Line], dict[str, str]]:
    """Check this node; the lake only if it is the one that the mark was put in."""
    if mark is None or files.exists(mark):
        return check_machine(wanted), installed()
    remedy = "mount one file system on all nodes, or use an object store"
    other = Line(FAIL, "lake", f"{wanted.lake} is another folder on this node", remedy)
    return [*check_machine(replace(wanted, lake=None)), other], installed()


@contextmanager
def _mark(lake: str | None) -> Iterator[str | None]:
    """Yield the path of a file in a lake that is a folder, by which a node knows that it sees the same one."""
    if lake is None or not files.is_local(lake):
        yield None
        return
    mark = files.join(lake, f".doctor-{uuid.uuid4().hex}")
    files.write_atomic(mark, b"")
    try:
        yield mark
    finally:
        files.remove_tree(mark, below=lake)


def _same_versions(versions: Mapping[str, Mapping[str, str]]) -> Iterator[Line]:
    """Compare the packages that every node has with those of this process, which the job is submitted from."""
    here = installed()
    other = {
        (name, node): f"{name} {have.get(name, 'missing')} on {node}, {version} here"
        for node, have in versions.items()
        for name, version in here.items()
        if have.get(name) != version and (name in have or name in SHOWN)
    }
    decisive = [text for (name, _), text in other.items() if name in (*SHOWN, "python")]
    remedy = "use one image for all nodes, and the same versions where jobs are submitted from"
    if decisive:
        yield Line(FAIL, "same versions", "; ".join(decisive[:4]), remedy)
    elif other:
        names = Counter(name for name, _ in other)
        yield Line(WARN, "same versions", f"{len(names)} packages differ: {', '.join(list(names)[:6])}", remedy)
    else:
        yield Line(OK, "same versions", f"on {len(versions)} nodes and here")


def _clocks(nodes: Sequence[Node]) -> Iterator[Line]:
    for node in nodes:
        began = time.time()
        (there,) = on_each([node], time.time, [()], timeout_s=TIMEOUT_S)
        ended = time.time()
        if isinstance(there, float):
            slack = (ended - began) / 2  # the call took so long: a smaller distance cannot be seen
            offset = there - (began + ended) / 2
            yield clock.line(max(0.0, abs(offset) - slack), "of this machine", node.name)


def _sums(nodes: Sequence[Node]) -> Iterator[Line]:
    """Measure between nodes with GPUs, or between all where fewer than two have any."""
    with_gpus = [node for node in nodes if node.gpus >= 1]
    chosen, backend, of = (with_gpus, "nccl", "nodes") if len(with_gpus) > 1 else (list(nodes), "gloo", "nodes")
    if len(chosen) < 2:
        yield Line(OK, "all-reduce", "one node: nothing to sum between nodes")
        return
    (port,) = on_each(chosen[:1], all_reduce.free_port, [()], timeout_s=TIMEOUT_S)
    if isinstance(port, AltDiffusionError):
        yield Line(FAIL, "all-reduce", port.problem, port.remedy)
        return
    address = f"{chosen[0].address}:{port}"
    given = [(rank, len(chosen), address, backend, 64) for rank in range(len(chosen))]
    gpus = 1.0 if backend == "nccl" else 0.0
    rates = on_each(chosen, all_reduce.rate, given, timeout_s=TIMEOUT_S, num_gpus=gpus)
    errors = [rate.problem for rate in rates if isinstance(rate, AltDiffusionError)]
    measured = [rate for rate in rates if isinstance(rate, float)]
    yield all_reduce.line(errors[0] if errors else min(measured), len(chosen), backend, of)
