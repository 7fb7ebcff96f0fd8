"""Documents: lines of at most 100 columns, links and anchors that lead somewhere, files that are there, and costs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from altdiffusion.config import load_config
from pipelines import curate
from pipelines.curate import CurateConfig
from pipelines.train import TrainJobConfig, survey

ROOT = Path(__file__).parents[2]
WIDTH = 100
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
DOCUMENTS = [ROOT / name for name in TRACKED if name.endswith(".md")]
_FILE = re.compile(r"`([\w/.\-]+\.(?:py|yaml|toml|json))`")


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def prose(text: str) -> list[tuple[int, str]]:
    """Return (number, line) of every line outside code blocks."""
    lines, fenced = [], False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            lines.append((number, line))
    return lines


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    titles = [line.lstrip("#").strip() for _, line in prose(path.read_text(encoding="utf-8")) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_lines_are_at_most_100_columns_wide(document: Path) -> None:
    """Tables, code and words that cannot be broken, such as addresses, may be wider."""
    wide = [
        number
        for number, line in prose(document.read_text(encoding="utf-8"))
        if len(line) > WIDTH and not line.lstrip().startswith(("|", "![")) and len(line.split()) > 2
    ]
    assert not wide, f"wrap at {WIDTH} columns: lines {wide}"


def test_links_lead_to_files_and_anchors_that_exist(document: Path) -> None:
    text = "\n".join(line for _, line in prose(document.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_named_source_files_exist(document: Path) -> None:
    """A file is named from the repository's root, the package, the configs or the document's folder, or by itself."""
    roots = ("", "platform/altdiffusion/", "jobs/configs/", f"{document.parent.relative_to(ROOT)}/")
    for name in _FILE.findall(document.read_text(encoding="utf-8")):
        if name.endswith("__init__.py") or not ("/" in name or name.endswith(".py")):
            continue  # files of lakes and models
        alone = "/" not in name and any(path.endswith(f"/{name}") for path in TRACKED)
        assert alone or any(f"{root}{name}" in TRACKED for root in roots), name


@pytest.mark.parametrize("workers", [64, 256, 1024])
def test_the_download_in_the_readme_is_that_of_the_dry_run(workers: int) -> None:
    path = str(ROOT / "jobs/configs/m18/curate.yaml")
    config = load_config(CurateConfig, path, [f"download_workers.max={workers}"])
    (line,) = [one for one in curate.survey(config).lines if one.startswith("download ")]
    fetched, stored = re.findall(r"(\d+ TB) (?:fetched|stored)", line)
    (nodes, network, days) = re.findall(r"on (\d+) nodes: ([\d.]+ Gbit/s), ([\d.]+) days", line)[0]
    row = f"| {workers:,} | {nodes} | {fetched} | {stored} | {network} | {days} |"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", ["alignment", "quality", "guidance"])
def test_the_costs_in_the_readme_are_those_of_the_dry_runs(stage: str) -> None:
    """GPU-hours as the dry run prints them, days on 8, 64 and 256 GPUs, and 2 $ per GPU-hour."""
    config = load_config(TrainJobConfig, str(ROOT / f"jobs/configs/m18/{stage}.yaml"))
    (hours,) = re.findall(r"hours +([\d,]+) worker-hours", "\n".join(survey(config).lines))
    exact = config.train.steps * config.train.global_batch / (config.estimate.images_per_s_per_worker or 0) / 3600
    days = [f"{exact / gpus / 24:.1f}" for gpus in (8, 64, 256)]
    row = f"| {stage} | {hours} | {' | '.join(days)} | {2 * exact:,.0f} $ |"
    assert row in (ROOT / "README.md").read_text(encoding="utf-8")
