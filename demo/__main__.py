"""The main job, end to end, on real data: `make demo`.

Every step is a job that can be run by itself; its command is printed. Finished work is not done again, so the same
command resumes after a kill, and ends in seconds when everything is done.

    .demo/cache    public images and texts, and the crawl made from them
    .demo/models   the small base model and the multilingual text encoder
    .demo/lake     every dataset, checkpoint and export
    .demo/out      grid and tables, to look at
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from altdiffusion.errors import AltDiffusionError

ROOT = Path(".demo")
CACHE, MODELS, LAKE, OUT = (ROOT / name for name in ("cache", "models", "lake", "out"))
CONFIGS = Path("jobs/configs/demo")
CONCEPTS = 128


class Clock:
    """Prints what begins, and keeps how long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str, command: str) -> Iterator[None]:
        print(f"\n── {name} ── {command}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        print(f"   {name}: {self.seconds[name]:.1f} s", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return an exit status as the jobs do."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--concepts", type=int, default=CONCEPTS, help=f"how many concepts (default {CONCEPTS})")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="CONFIG:key=value",
        help="override, e.g. quality:train.steps=100",
    )
    arguments = parser.parse_args(argv)
    try:
        _demo(arguments.concepts, arguments.set)
    except AltDiffusionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr, flush=True)
        return 130
    return 0


def _demo(concepts: int, overrides: Sequence[str]) -> None:
    from altdiffusion.storage.dataset import Lake
    from demo import server, site, truth
    from jobs import harness

    clock, started = Clock(), time.time()

    def job(name: str, config: str, *own: str) -> None:
        # In this process, so that all jobs share one embedded Ray; the printed command does the same alone.
        path = CONFIGS / f"{config}.yaml"
        chosen = [text.partition(":")[2] for text in overrides if text.startswith(f"{config}:")]
        with clock.step(config, f"python -m jobs.{name} --config {path}"):
            entry = importlib.import_module(f"jobs.{name}").JOB
            status = harness.main(entry, ["--config", str(path), *own, *chosen])
        if status:
            raise SystemExit(status)

    _prepare(clock, concepts)
    with server.running(CACHE) as port:
        job("curate", "curate", f"download.connect_to={json.dumps(site.connect_to(port))}")
    with clock.step("truth", "python -m demo.truth --lake .demo/lake --dataset images"):
        truth.compare(Lake(str(LAKE)), "images", CACHE)
    job("encode", "encode")
    for stage in ("alignment", "quality", "guidance"):
        job("train", stage)
    job("generate", "generate")
    job("evaluate", "evaluate")
    _show(clock, started)


def _prepare(clock: Clock, concepts: int) -> None:
    """Make, once, what the jobs read that is not in the repository, from public packages and the shipped base."""
    from demo import base, crawl, fonts, npm, prompts
    from demo.concepts import demo_concepts

    with clock.step("images and texts", "python -m demo.crawl"):
        npm.fetch_packages(CACHE)
        fonts.fetch_fonts(CACHE)
        crawl.build_crawl(CACHE, concepts)
        chosen = demo_concepts(concepts, CACHE)
        prompts.write_prompts(OUT, chosen, crawl.truth(CACHE))
        print(f"   {len(chosen)} concepts in 18 languages, {crawl.truth(CACHE).num_rows:,} rows of links")
    with clock.step("base model", f"python -m demo.base unpack --out {MODELS}"):
        base.unpack(MODELS)


def _show(clock: Clock, started: float) -> None:
    """Print where the results are; print the table only if the evaluation has not just printed it."""
    from altdiffusion import cli

    print("\n── lineage ── altdiffusion lineage up checkpoint:demo-guidance --lake .demo/lake", flush=True)
    if cli.main(["lineage", "up", "checkpoint:demo-guidance", "--lake", str(LAKE)]):
        raise SystemExit(2)
    table = OUT / "evaluation.txt"
    if table.stat().st_mtime < started:
        print("\n── how it speaks 18 languages ──")
        print(table.read_text(encoding="utf-8"))
    print()
    total = sum(clock.seconds.values())
    print(f"Image grid      {OUT / 'grid.png'}")
    print(f"Tables          {OUT / 'evaluation.md'}")
    server = f"{os.path.relpath(Path(sys.executable).parent)}/mlflow server --host 127.0.0.1"
    print(f"MLflow          {server} --backend-store-uri sqlite:///{LAKE}/mlflow.db   then http://127.0.0.1:5000")
    print(f"Took            {total / 60:.1f} minutes: " + ", ".join(f"{n} {s:.0f} s" for n, s in clock.seconds.items()))


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from jobs.harness import leave

    leave(main())
