"""Faults of storage: an S3 server on loopback that does things wrong, disks that are full or slow, a network that is
cut."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import verify
from tests.chaos.outcome import Case, Outcome, expect
from tests.s3_lake import BUCKET, NAMES, bucket, counts, curate, job, source, wrong

ROOT = Path(__file__).resolve().parents[2]
LAKE = f"{BUCKET}/lake"


@functools.cache
def undisturbed() -> tuple[dict[str, str], int]:
    """Return the digests of the curation in a folder, and how many requests it takes on a server that does no wrong."""
    with tempfile.TemporaryDirectory() as folder, source(Path(folder)) as (site, table):
        digests = curate(job(f"{folder}/lake", site, table))
        with bucket(Path(folder) / "s3") as address:
            expect(curate(job(LAKE, site, table)) == digests, "the digests on S3 are not those of a folder")
            return digests, counts(address).total()


def s3(*rules: Mapping[str, Any], fails: str | None = None) -> Callable[[Path, random.Random], Outcome]:
    """Return the case of a server with some rules.

    Args:
        fails: the curation must end with an error that holds this text and the key of the object, and complete when the
            server no longer does wrong. Without it, the curation must complete by itself.
    """

    def run(folder: Path, _: random.Random) -> Outcome:
        digests, usual = undisturbed()
        with source(folder) as (site, table), bucket(folder / "s3") as address:
            wrong(address, *rules)
            began, ended_by, recover_s = time.monotonic(), "", None
            try:
                found = curate(job(LAKE, site, table))
                expect(fails is None, "the curation completed although it cannot have")
            except AltDiffusionError as error:
                expect(fails is not None and fails in str(error) and LAKE in error.what, f"ended with {error}")
                ended_by = f"after {time.monotonic() - began:.0f} s: {error.problem}; "
                wrong(address)
                again = time.monotonic()
                found = curate(job(LAKE, site, table))
                recover_s = time.monotonic() - again
            expect(found == digests, "other digests than undisturbed")
            more = counts(address).total() - usual
            wrong(address)
            damages = [damage for name in NAMES for damage in verify(Lake(LAKE).dataset(name)).damages]
            expect(not damages, f"damaged: {damages}")
        return Outcome(wasted=f"{max(0, more)} requests", recover_s=recover_s, note=ended_by.replace("; ", ""))

    return run


def killed_on_s3(folder: Path, draw: random.Random) -> Outcome:
    """Kill the driver three times at random requests, once while an object is being sent."""
    digests, usual = undisturbed()
    with source(folder) as (site, table), bucket(folder / "s3") as address:
        kills = 0
        for number in range(3):
            if number == 1:
                wrong(address, {"methods": ["PUT"], "match": "/shards/", "every": 2, "delay_s": 20})
            before = counts(address).total()
            driver = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, LAKE, str(table), str(site.port)], cwd=ROOT, env=_environment()
            )
            wanted = before + draw.randint(15, usual // 2)
            ends = time.monotonic() + 60
            while driver.poll() is None and counts(address).total() < wanted and time.monotonic() < ends:
                time.sleep(0.02)
            if driver.poll() is None:
                kills += 1
                driver.send_signal(signal.SIGKILL)
            driver.wait()
            wrong(address)
        again = time.monotonic()
        expect(curate(job(LAKE, site, table)) == digests, "other digests than undisturbed")
        recover_s = time.monotonic() - again
        expect(kills >= 2, f"only {kills} of 3 runs were still running")
        damages = [damage for name in NAMES for damage in verify(Lake(LAKE).dataset(name)).damages]
        expect(not damages, f"damaged: {damages}")
        return Outcome(
            wasted=f"{counts(address).total() - usual} requests, verification included",
            recover_s=recover_s,
            note=f"{kills} kills",
        )


_DRIVER = """
import sys
from pathlib import Path
from tests.fetch_server import Site
from tests.s3_lake import curate, job
curate(job(sys.argv[1], Site(port=int(sys.argv[3])), Path(sys.argv[2])))
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}", "OMP_NUM_THREADS": "1"}


def in_namespaces(kind: str, *flags: str) -> Callable[[Path, random.Random], Outcome]:
    """Return a case that runs in namespaces of its own, which end with it (tests.chaos.in_namespace)."""

    def run(folder: Path, _: random.Random) -> Outcome:
        command = ["unshare", *flags, "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable]
        done = subprocess.run(
            [*command, "-m", "tests.chaos.in_namespace", kind, str(folder)],
            cwd=ROOT,
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        expect(done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:])
        return Outcome(**json.loads(done.stdout.splitlines()[-1]))

    return run


def slow_disk(folder: Path, _: random.Random) -> Outcome:
    """Have every flush to disk take a fifth of a second."""
    digests, _usual = undisturbed()
    real, calls = os.fsync, 0

    def slow(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.2)
        real(descriptor)

    os.fsync = slow
    try:
        with source(folder) as (site, table):
            began = time.monotonic()
            expect(curate(job(f"{folder}/lake", site, table)) == digests, "other digests than undisturbed")
    finally:
        os.fsync = real
    return Outcome(wasted="nothing", note=f"{calls} flushes in {time.monotonic() - began:.0f} s")


CASES = [
    Case(name="s3-errors", fault="S3 answers 500", how="each fourth request", run=s3({"every": 4, "status": 500})),
    Case(
        name="s3-throttling",
        fault="S3 limits requests",
        how="503 SlowDown for each fourth request",
        run=s3({"every": 4, "status": 503, "code": "SlowDown"}),
    ),
    Case(
        name="s3-timeout",
        fault="S3 does not answer",
        how="one request waits for longer than the client does",
        run=s3({"methods": ["PUT"], "match": "/shards/", "times": 1, "delay_s": 20}),
    ),
    Case(
        name="s3-partial-upload",
        fault="an upload breaks off",
        how="the connection is cut in the body of every second shard",
        run=s3({"methods": ["PUT"], "match": "/shards/", "every": 2, "times": 3, "cut": True}),
    ),
    Case(
        name="s3-no-receipt",
        fault="an object is written, and its receipt is lost",
        how="the connection is cut after every second write",
        run=s3({"methods": ["PUT"], "every": 2, "times": 10, "unanswered": True}),
    ),
    Case(
        name="s3-partial-download",
        fault="a download breaks off",
        how="the connection is cut in the body of each fifth answer",
        run=s3({"methods": ["GET"], "every": 5, "cut": True}),
    ),
    Case(
        name="s3-stale-listing",
        fault="listings lack the newest objects",
        how="all of the last ten minutes are left out",
        run=s3({"methods": ["LIST"], "stale_s": 600}),
    ),
    Case(
        name="s3-outage",
        fault="S3 is away",
        how="503 for every write, then back",
        run=s3(
            {"methods": ["PUT"], "status": 503, "code": "ServiceUnavailable"},
            fails="the store limits requests or is down",
        ),
    ),
    Case(
        name="s3-full",
        fault="the object store is full",
        how="507 for every shard, then room",
        run=s3(
            {"methods": ["PUT"], "match": "/shards/", "status": 507, "code": "InsufficientStorage"},
            fails="free space in the store",
        ),
    ),
    Case(
        name="s3-driver-killed",
        fault="driver SIGKILL on an object store",
        how="three times at random requests, once within an upload",
        run=killed_on_s3,
    ),
    Case(
        name="disk-full",
        fault="full disk",
        how="a tmpfs of 96 KiB in a mount namespace, made larger afterwards",
        run=in_namespaces("disk", "--mount"),
    ),
    Case(name="disk-slow", fault="slow disk", how="0.2 s per flush, in the process", run=slow_disk),
    Case(
        name="partition",
        fault="partition between two network namespaces",
        how="the link between job and S3 is down for 40 s",
        run=in_namespaces("partition", "--net"),
    ),
]
