"""The main line of jobs, at one of two sizes: the quick demo and the miniature of the recipe.

Every step is a job that can be run by itself; its command is printed. Finished work is not done again, so the same
command resumes after a kill, and ends in seconds when everything is done.

    .demo/cache               public images and texts, and the crawls made from them
    .demo/models              the small base model and the multilingual text encoder
    .demo/lake, .demo/out     the demo's datasets, checkpoints and exports; grid and tables, to look at
    .demo/miniature/...       the same of the miniature
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake

CACHE, MODELS = Path(".demo/cache"), Path(".demo/models")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size of the line."""

    name: str
    """Its folder of configs, below jobs/configs."""
    root: Path
    """Holds its lake and its output."""
    crawl: str
    """Name of its crawl, below the cache."""
    concepts: int

    @property
    def lake(self) -> Path:
        return self.root / "lake"

    @property
    def out(self) -> Path:
        return self.root / "out"


DEMO = Scale(name="demo", root=Path(".demo"), crawl="crawl", concepts=32)
MINIATURE = Scale(name="miniature", root=Path(".demo/miniature"), crawl="crawl-miniature", concepts=128)


@dataclass(kw_only=True)
class Line:
    """The jobs at one size, with what they took."""

    scale: Scale
    overrides: Sequence[str] = ()
    """`CONFIG:key=value`."""
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    @contextlib.contextmanager
    def step(self, name: str, command: str) -> Iterator[None]:
        """Print what begins, and keep how long it took."""
        print(f"\n── {name} ── {command}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        print(f"   {name}: {self.seconds[name]:.1f} s", flush=True)

    def job(self, name: str, config: str, *shown: str, title: str = "", hidden: Sequence[str] = ()) -> None:
        """Run a job in this process, so that all jobs share one embedded Ray; the printed command does the same alone.

        Args:
            shown: overrides that are part of the printed command.
            hidden: overrides that are not, such as the port of this process's server.
        """
        path = Path("jobs/configs") / self.scale.name / f"{config}.yaml"
        title = title or config
        chosen = [text.partition(":")[2] for text in self.overrides if text.startswith(f"{title}:")]
        with self.step(title, " ".join(["python", "-m", f"jobs.{name}", "--config", str(path), *shown])):
            from jobs import harness

            entry = importlib.import_module(f"jobs.{name}").JOB
            status = harness.main(entry, ["--config", str(path), *shown, *hidden, *chosen])
        if status:
            raise SystemExit(status)

    def prepare(self) -> None:
        """Make, once, what the jobs read that is not in the repository, from public packages and the shipped base."""
        from demo import base, crawl, fonts, npm, prompts
        from demo.concepts import demo_concepts

        scale = self.scale
        with self.step("images and texts", "python -m demo.crawl"):
            npm.fetch_packages(CACHE)
            fonts.fetch_fonts(CACHE)
            crawl.build_crawl(CACHE, scale.concepts, scale.crawl)
            chosen = demo_concepts(scale.concepts, CACHE)
            prompts.write_prompts(scale.out, chosen, crawl.labels(CACHE, scale.crawl))
            rows = crawl.truth(CACHE, scale.crawl).num_rows
            print(f"   {len(chosen)} concepts in 18 languages, {rows:,} rows of links")
        with self.step("base model", f"python -m demo.base unpack --out {MODELS}"):
            base.unpack(MODELS)

    def curate(self) -> None:
        """Curate the crawl and the judge's images from a local web server, and compare the crawl with its truth."""
        from demo import server, site, truth

        with server.running(CACHE) as port:
            here = [f"download.connect_to={json.dumps(site.connect_to(port))}"]
            self.job("curate", "curate", hidden=here)
            self.job("curate", "curate-judge", hidden=here)
        command = f"python -m demo.truth --lake {self.scale.lake} --dataset images --crawl {self.scale.crawl}"
        with self.step("truth", command):
            truth.compare(Lake(str(self.scale.lake)), "images", CACHE, self.scale.crawl)

    def sheet(self, dataset: str, file: Path, *own: str) -> None:
        """Draw the contact sheet of a dataset of generations."""
        from altdiffusion import cli

        arguments = ["sheet", dataset, "--lake", str(self.scale.lake), "--out", str(file)]
        arguments += ["--fonts", str(CACHE / "fonts"), *own]
        with self.step("sheet", f"altdiffusion {' '.join(arguments)}"):
            if cli.main(arguments):
                raise SystemExit(2)

    def show_lineage(self, run: str) -> None:
        """Print the lineage of a run's last checkpoint as a tree."""
        from altdiffusion import cli

        print(f"\n── lineage ── altdiffusion lineage up checkpoint:{run} --lake {self.scale.lake}", flush=True)
        if cli.main(["lineage", "up", f"checkpoint:{run}", "--lake", str(self.scale.lake)]):
            raise SystemExit(2)

    def show_table(self) -> None:
        """Print the evaluation's table, unless the evaluation has just printed it."""
        table = self.scale.out / "evaluation.txt"
        if table.stat().st_mtime < self.started:
            print("\n── how it speaks 18 languages ──")
            print(table.read_text(encoding="utf-8"))

    def show_took(self) -> None:
        """Print how to browse the line in MLflow, and how long each step took."""
        command = os.path.relpath(Path(sys.executable).parent / "altdiffusion")
        print(f"MLflow          {command} ui --lake {self.scale.lake}")
        total = sum(self.seconds.values())
        print(
            f"Took            {total / 60:.1f} minutes: " + ", ".join(f"{n} {s:.0f} s" for n, s in self.seconds.items())
        )


def main(run: Callable[[Line], None], scale: Scale, prog: str, description: str, argv: Sequence[str] | None) -> int:
    """Run a line from the command line; return an exit status as the jobs do."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "--concepts", type=int, default=scale.concepts, help=f"how many concepts (default {scale.concepts})"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STEP:key=value",
        help="override, e.g. quality:train.steps=100",
    )
    arguments = parser.parse_args(argv)
    chosen = Scale(name=scale.name, root=scale.root, crawl=scale.crawl, concepts=arguments.concepts)
    try:
        run(Line(scale=chosen, overrides=arguments.set))
    except AltDiffusionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr, flush=True)
        return 130
    return 0
