"""What storage_cases runs in namespaces of its own; it needs the rights to mount and to make network links.

    unshare --mount ... python -m tests.chaos.in_namespace disk FOLDER
    unshare --net ...   python -m tests.chaos.in_namespace partition FOLDER

Prints the fields of an Outcome as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from altdiffusion.storage.verification import verify
from tests.chaos.outcome import expect
from tests.s3_lake import NAMES, curate, job, source

DOWN_S = 40.0
HERE, THERE, PORT = "10.200.0.1", "10.200.0.2", 9000


def call(*command: str) -> None:
    subprocess.run(command, check=True)


def disk(folder: Path) -> dict[str, Any]:
    """Curate onto a disk that is too small, make it larger, and run the same again."""
    place = folder / "disk"
    place.mkdir()
    call("mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place))
    with source(folder) as (site, table):
        digests = curate(job(f"{folder}/undisturbed", site, table))
        asked = len(site.requests)
        lake = f"{place}/lake"
        try:
            curate(job(lake, site, table))
            raise AssertionError("the disk was not full")
        except AltDiffusionError as error:
            expect("ENOSPC" in error.problem and str(place) in error.what, str(error))
            note = f"{error.problem}"
        call("mount", "-o", "remount,size=64m", str(place))
        again = time.monotonic()
        expect(curate(job(lake, site, table)) == digests, "other digests than undisturbed")
        recover_s = time.monotonic() - again
    damages = [damage for name in NAMES for damage in verify(Lake(lake).dataset(name)).damages]
    expect(not damages, f"damaged: {damages}")
    more = len(site.requests) - 2 * asked
    return {"wasted": f"{max(0, more)} downloads", "recover_s": recover_s, "note": note}


def partition(folder: Path) -> dict[str, Any]:
    """Curate onto an S3 server in another network namespace, cut the link, and join it again."""
    call("ip", "link", "set", "lo", "up")
    (folder / "s3/bucket").mkdir(parents=True)
    serve = [sys.executable, "-m", "benchmarks.s3_server", "--root", str(folder / "s3"), "--port", str(PORT)]
    server = subprocess.Popen(["unshare", "--net", *serve, "--host", "0.0.0.0"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(1.0)
        enter = ["nsenter", "-t", str(server.pid), "-n"]
        call("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
        call("ip", "link", "set", "veth1", "netns", str(server.pid))
        call("ip", "addr", "add", f"{HERE}/24", "dev", "veth0")
        call("ip", "link", "set", "veth0", "up")
        call(*enter, "ip", "addr", "add", f"{THERE}/24", "dev", "veth1")
        call(*enter, "ip", "link", "set", "veth1", "up")
        address = f"http://{THERE}:{PORT}"
        _wait_for(address)
        os.environ.update(
            AWS_ACCESS_KEY_ID="tests", AWS_SECRET_ACCESS_KEY="tests", AWS_ENDPOINT_URL=address,
            AWS_DEFAULT_REGION="us-east-1", AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
        )  # fmt: skip
        with source(folder) as (site, table):
            digests = curate(job(f"{folder}/undisturbed", site, table))
            up = threading.Event()

            def cut() -> None:
                while _asked(address) < 40:
                    time.sleep(0.02)
                call("ip", "link", "set", "veth0", "down")
                time.sleep(DOWN_S)
                call("ip", "link", "set", "veth0", "up")
                up.set()

            threading.Thread(target=cut, daemon=True).start()
            ended, tries = "", 0
            while True:
                tries += 1
                try:
                    found = curate(job("s3://bucket/lake", site, table))
                    break
                except AltDiffusionError as error:
                    ended = error.problem
                    expect("s3://bucket/lake" in error.what, str(error))
                    up.wait(DOWN_S + 20)
                    up_at = time.monotonic()
            expect(up.is_set(), "the curation ended before the link was cut")
            expect(found == digests, "other digests than undisturbed")
        recover_s = time.monotonic() - up_at if tries > 1 else None
        note = "the job waited for the link and went on" if tries == 1 else f"ended by: {ended}; the same command"
        return {"wasted": "the requests in flight", "recover_s": recover_s, "note": note}
    finally:
        server.kill()
        server.wait()


def _asked(address: str) -> int:
    with urllib.request.urlopen(f"{address}/?counts", timeout=5) as answer:
        return sum(json.load(answer).values())


def _wait_for(address: str) -> None:
    for _ in range(300):
        try:
            _asked(address)
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)


if __name__ == "__main__":
    print(json.dumps({"disk": disk, "partition": partition}[sys.argv[1]](Path(sys.argv[2]))))
