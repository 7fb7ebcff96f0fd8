"""The whole line with its lake on an S3 server: links to images by four commands, as in a folder, killed or not."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from altdiffusion import cli
from altdiffusion.storage import files
from tests.s3_lake import BUCKET, bucket, counts, hits, wrong
from tests.whole_line import JOBS, WholeLine, results, whole_line

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LAKE = f"{BUCKET}/lake"
KILLED = f"{BUCKET}/killed"
_OF_WORK = re.compile(r"(PUT|POST|PART|DELETE) |/(ledger|shards|rejects|spill|takedowns)(/|$)|\.safetensors$")
"""Requests for data, and all that write. The others are for documents, which MLflow's view reads as often as it ships:
on a slow machine more often than on a fast one."""
COUNTED = {
    "curate": (186, 129),
    "encode": (64, 51),
    "train": (159, 375),
    "generate": (124, 145),
    "curate again": (9, 29),
    "encode again": (3, 12),
    "train again": (12, 14),
    "generate again": (11, 36),
    "lineage up": (0, 39),
    "lineage verify": (92, 77),
    "dataset verify": (21, 6),
    "gc": (90, 27),
}
"""Requests of each command for its work, and for documents, as counted (docs/benchmarks.md)."""


def most(name: str) -> tuple[float, float]:
    """Return how many there may be: a tenth more, but documents of a job that ships to MLflow twice as many."""
    work, documents = COUNTED[name]
    return 1.1 * work, documents * (2 if name in JOBS else 1.1)


KILLS = (
    ("curate", {"methods": ["PUT"], "match": "/datasets/images/shards/", "every": 3}),
    ("encode", {"methods": ["PUT"], "match": "/datasets/latents/ledger/", "every": 3}),
    ("train", {"methods": ["PUT"], "match": "/checkpoints/line/step-00000008/ema"}),
    ("train", {"methods": ["POST"], "match": "^/bucket/?$", "every": 2}),  # of step 4, of which COMPLETE.json is gone
    ("train", {"methods": ["PART"], "match": "/exports/line/", "every": 2}),
    ("generate", {"methods": ["PUT"], "match": "/datasets/generations/shards/", "every": 3}),
)
"""Where each command dies: while the server waits with this request."""


@dataclass(frozen=True)
class Lakes:
    """A folder's results, and the server of the same line."""

    line: WholeLine
    bucket: Path
    address: str
    expected: dict[str, Any]
    asked: dict[str, Counter[str]]
    """The requests of each command with the lake on S3, the first time and (`again`) the second."""


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lakes]:
    """Run the line in a folder, and undisturbed on S3."""
    folder = tmp_path_factory.mktemp("line")
    with pytest.MonkeyPatch.context() as patch, whole_line(folder) as line, bucket(folder / "s3", keys=True) as address:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        asked: dict[str, Counter[str]] = {}
        for job in JOBS:
            line.run(job, str(folder / "lake"))
        for again in ("", " again"):
            for job in JOBS:
                before = counts(address)
                printed = line.run(job, LAKE)
                assert ("already there" in printed) is bool(again), printed
                asked[job + again] = counts(address) - before
        yield Lakes(line, folder / "s3/bucket", address, results(str(folder / "lake")), asked)


def test_the_line_on_an_object_store_is_that_of_a_folder(lakes: Lakes, capsys: pytest.CaptureFixture[str]) -> None:
    assert results(LAKE) == lakes.expected
    for verb in ("lineage up", "lineage verify", "dataset verify", "gc"):
        before = counts(lakes.address)
        of = {"gc": [], "dataset verify": ["generations"]}.get(verb, ["dataset:generations"])
        assert cli.main([*verb.split(), *of, "--lake", LAKE]) == 0, capsys.readouterr()
        printed = capsys.readouterr().out
        lakes.asked[verb] = counts(lakes.address) - before
        if verb == "lineage up":
            for part in ("checkpoint line", "dataset latents", "dataset images", "dataset links", "source s"):
                assert part in printed, f"{part} is not in\n{printed}"
    kinds = {name: by_kind(asked) for name, asked in lakes.asked.items()}
    for name, (work, documents) in kinds.items():
        print(f"{name}: {dict(work)} for work, {documents} for documents")
    assert kinds["train"][0]["PART"] >= 3, "no object was sent in parts"
    totals = {name: (work.total(), documents) for name, (work, documents) in kinds.items()}
    assert totals.keys() == COUNTED.keys()
    above = {name: found for name, found in totals.items() if found[0] > most(name)[0] or found[1] > most(name)[1]}
    assert not above, f"more requests than {COUNTED}: {above}"


def by_kind(asked: Counter[str]) -> tuple[Counter[str], int]:
    """Return the requests of a command for its work, by kind, and how many were for documents."""
    work: Counter[str] = Counter()
    for key, count in asked.items():
        if _OF_WORK.search(key):
            work[key.partition(" ")[0]] += count
    return work, asked.total() - work.total()


def test_a_line_that_is_killed_in_each_command_ends_the_same(lakes: Lakes, capsys: pytest.CaptureFixture[str]) -> None:
    done: set[str] = set()
    for job, rule in KILLS:
        for before in JOBS[: JOBS.index(job)]:
            if before not in done:
                lakes.line.run(before, KILLED)
                done.add(before)
        kill_at(lakes, job, rule)
    lakes.line.run("generate", KILLED)
    assert results(KILLED) == lakes.expected
    for name in ("images", "latents", "generations"):
        assert cli.main(["dataset", "verify", name, "--lake", KILLED]) == 0, capsys.readouterr()
    assert cli.main(["lineage", "verify", "dataset:generations", "--lake", KILLED]) == 0, capsys.readouterr()


def kill_at(lakes: Lakes, job: str, rule: dict[str, Any]) -> None:
    """Start a command and kill it with SIGKILL when the server has a certain request and does not answer it yet."""
    wrong(lakes.address, {**rule, "times": 1, "delay_s": 60})
    process = lakes.line.start(job, KILLED)
    try:
        while hits(lakes.address) != [1]:
            assert process.poll() is None, f"{job} did not send {rule}: {process.communicate()[0][-3000:]}"
            time.sleep(0.05)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()
        wrong(lakes.address)
    assert process.returncode == -signal.SIGKILL


def test_a_flipped_object_is_named_and_garbage_alone_goes(lakes: Lakes, capsys: pytest.CaptureFixture[str]) -> None:
    lake = lakes.bucket / "lake"
    for name, verify in (
        ("datasets/images/shards", ["dataset", "verify", "images"]),
        ("datasets/latents/shards", ["lineage", "verify", "dataset:generations"]),
        ("checkpoints/line/step-00000012", ["lineage", "verify", "dataset:generations"]),
    ):
        path = max((lake / name).rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
        whole = path.read_bytes()
        path.write_bytes(whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:])
        assert cli.main([*verify, "--lake", LAKE]) == 1
        found = capsys.readouterr()
        assert path.name in found.out + found.err, found
        path.write_bytes(whole)
        assert cli.main([*verify, "--lake", LAKE]) == 0, capsys.readouterr()
        capsys.readouterr()

    before = objects(lake)
    shards = lake / "datasets/images/shards"
    (shards / f"{'0' * 64}.parquet").write_bytes(b"no version names it")
    assert cli.main(["gc", "--lake", LAKE, "--older-than", "1s", "--yes"]) == 0, capsys.readouterr()
    assert "deleted 1 files" in capsys.readouterr().out
    assert objects(lake) == before
    assert results(LAKE) == lakes.expected


def objects(folder: Path) -> dict[str, int]:
    """Return the names and sizes of all objects below a folder of the bucket."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_a_second_writer_is_refused_however_an_object_is_sent(lakes: Lakes) -> None:
    record = next((lakes.bucket / "lake/datasets/images/ledger").rglob("*.json"))
    uri, whole = f"{BUCKET}/{record.relative_to(lakes.bucket)}", record.read_bytes()
    assert not files.put_if_absent(uri, b"another") and record.read_bytes() == whole
    large = bytes(101 << 20)
    before = counts(lakes.address)
    assert files.put_if_absent(f"{BUCKET}/large", large)
    assert not files.put_if_absent(f"{BUCKET}/large", b"1" + large)
    assert (counts(lakes.address) - before)["PART large"] == 6
    assert (lakes.bucket / "large").read_bytes() == large
