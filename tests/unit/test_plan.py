"""`altdiffusion plan`: the published recipe on paper, and everything that is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from altdiffusion import cli
from altdiffusion.config import load_config
from pipelines.campaign.order import read_jobs
from pipelines.campaign.plan import Campaign, plan_campaign
from pipelines.campaign.plot import figure
from pipelines.campaign.prices import LIST, load_prices, tiered
from pipelines.campaign.report import as_json, markdown
from pipelines.train import TrainJobConfig
from tests.documented import commands

ROOT = Path(__file__).resolve().parents[2]
M18 = ROOT / "jobs/configs/m18"


@pytest.fixture(scope="module")
def campaign() -> Campaign:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return plan_campaign(["jobs/configs/m18/*.yaml"], load_prices(None))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["plan", *words]) == 2
    return capsys.readouterr().err


def changed(tmp_path: Path, name: str, **changes: Any) -> str:
    """Return a copy of a published config with other values at its top or in `train`."""
    tree = yaml.safe_load((M18 / f"{name}.yaml").read_text())
    for key, value in changes.items():
        (tree["train"] if key in tree.get("train", {}) else tree)[key] = value
    path = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def test_the_published_recipe_takes_its_published_days(campaign: Campaign) -> None:
    found = {stage.stage: stage for stage in campaign.published}
    assert {stage: one.published for stage, one in found.items()} == {"alignment": 8, "quality": 7, "guidance": 4}
    for stage, one in found.items():
        assert abs(one.steps - one.published) < 0.05, stage  # the rates are rounded
        assert 0 < one.failures < 0.1 and 0 <= one.checkpoints < 0.01, stage
        assert abs(one.planned - next(p.need.hours or 0 for p in campaign.parts if p.need.part == stage) / 24) < 1e-9
    runs = [part.need.job.name for part in campaign.parts]
    assert runs[0] == "m18-curate" and runs[-2:] == ["m18-eval", "m18-measure"]
    order = [runs.index(f"m18-{name}") for name in ("score", "encode", "alignment", "quality", "guidance", "generate")]
    assert order == sorted(order) and not campaign.unknown


def test_hours_are_those_of_the_dry_runs(campaign: Campaign) -> None:
    hours = {(part.need.job.name, part.need.part): part.need.hours for part in campaign.parts}
    assert hours["m18-curate", "download"] == pytest.approx(2e9 / (1024 * 100) / 3600)
    assert hours["m18-score", "score"] == pytest.approx(1.6e9 / (64 * 112) / 3600)
    quality = load_config(TrainJobConfig, str(M18 / "quality.yaml"))
    images = quality.train.steps * quality.train.global_batch
    assert (hours["m18-quality", "quality"] or 0) > images / (64 * 26.8) / 3600


def test_money_is_the_sum_of_what_is_listed(campaign: Campaign) -> None:
    plain = as_json(campaign)
    assert json.loads(json.dumps(plain)) == plain
    parts = sum(part["money"] for part in plain["parts"])
    total = plain["total"]
    assert total["money"] == pytest.approx(parts + total["head"] + total["storage"] + total["egress"])
    a100 = next(part for part in plain["parts"] if part["part"] == "alignment")
    assert a100["nodes"] == 8 and a100["money"] == pytest.approx(8 * a100["hours"] * 21.957642)
    assert all(row["source"] for row in plain["assumptions"]) and len(plain["assumptions"]) > 12


def test_more_gpus_take_fewer_days_and_more_money(campaign: Campaign) -> None:
    for run, points in campaign.scale.items():
        assert [point.gpus for point in points] == [8, 16, 32, 64, 128, 256, 512], run
        days, money = [point.days for point in points], [point.money for point in points]
        assert days == sorted(days, reverse=True) and money == sorted(money), run
        assert points[0].goodput > points[-1].goodput > 0.9
    assert figure(campaign).startswith(b"<?xml") and b"m18-quality, 512 GPUs" in figure(campaign)


def test_the_page_holds_what_the_command_prints(campaign: Campaign) -> None:
    (words,) = commands("docs/plan.md")
    assert words[:3] == ["altdiffusion", "plan", "--config"] and cli.parser().parse_args(words[1:])
    page = (ROOT / "docs/plan.md").read_text(encoding="utf-8")
    missing = [line for line in markdown(campaign).splitlines() if line.startswith("|") and line not in page]
    assert not missing, "run the command of docs/plan.md again"
    assert (ROOT / "docs/images/plan.svg").read_bytes() == figure(campaign)


def test_configs_that_do_not_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alignment, guidance = str(M18 / "alignment.yaml"), str(M18 / "guidance.yaml")
    assert "matches no file" in refused(capsys, "--config", f"{tmp_path}/*.yaml")
    assert "matches no file" in refused(capsys, "--config", f"{tmp_path}/nothing.yaml", alignment)
    assert "given twice" in refused(capsys, "--config", alignment, str(M18 / "align*.yaml"))
    found = refused(capsys, "--config", alignment, guidance)
    assert "reads the run m18-quality" in found and "--there m18-quality" in found
    found = refused(capsys, "--config", alignment, changed(tmp_path, "alignment"))
    assert "run m18-alignment: is made by two configs" in found
    other = changed(tmp_path, "alignment", lake="s3://other/lake")
    assert "s3://other/lake" in (found := refused(capsys, "--config", str(M18 / "encode.yaml"), other))
    assert "s3://your-bucket/altdiffusion" in found
    ring = [changed(tmp_path, "guidance", run="m18-quality", start={"checkpoint": "m18-guidance"}), guidance]
    assert "need each other" in refused(capsys, "--config", *ring)
    assert "is not the config of a job" in refused(capsys, "--config", str(LIST))
    assert "learing_rate" in refused(capsys, "--config", changed(tmp_path, "encode", learing_rate=1))
    wild = changed(tmp_path, "alignment", estimate={"images_per_s_per_worker": 22.9, "failures_per_worker_day": 500})
    assert "of the time for steps that count" in refused(capsys, "--config", wild)
    assert "has nothing to draw" in refused(
        capsys, "--config", str(M18 / "score.yaml"), "--plot", str(tmp_path / "x.svg")
    )
    assert "folder that does not exist" in refused(capsys, "--config", alignment, "--plot", f"{tmp_path}/no/x.svg")


def test_a_run_that_is_there_needs_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--config", str(M18 / "guidance.yaml"), "--there", "m18-quality"]) == 0
    printed = capsys.readouterr().out
    assert "Taken as there: dataset m18-latents-512" in printed and re.search(
        r"m18-guidance +guidance .* 96\.\d", printed
    )


def test_what_is_not_stated_is_named_as_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--config", changed(tmp_path, "score", estimate={})]) == 0
    printed = capsys.readouterr().out
    assert "Unknown: score of m18-score; give estimate.rows" in printed and "all that is known" in printed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"per_hour": 3}, "per_hour"),
        ({"head": "nobody"}, "is not one of nodes"),
        ({"nodes": {"head": {"instance": "a", "cpus": 1, "per_hour": 1}}}, "fits on no node of the price list"),
        ({"nodes": {"head": {"instance": "a", "cpus": 1, "per_hour": -1}}}, "must be at least 0"),
        ({"storage": []}, "tiers of rising up_to_tb"),
        ({"egress": [{"per_gb": 1}, {"up_to_tb": 5, "per_gb": 1}]}, "tiers of rising up_to_tb"),
        ({"date": ""}, "day of the prices"),
    ],
)
def test_wrong_price_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(LIST.read_text()) | change))
    assert said in refused(capsys, "--config", str(M18 / "score.yaml"), "--prices", str(path))


def test_a_price_list_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml" in refused(capsys, "--config", str(M18 / "score.yaml"), "--prices", "nowhere.yaml")


def test_tiers_are_filled_one_after_the_other() -> None:
    storage = load_prices(None).storage
    assert tiered(storage, 10) == pytest.approx(230)
    assert tiered(storage, 600) == pytest.approx(50_000 * 0.023 + 450_000 * 0.022 + 100_000 * 0.021)
    assert tiered(storage, 0) == 0


def test_every_config_of_the_repository_is_recognised() -> None:
    for folder in ("m18", "demo", "miniature"):
        for path in sorted((ROOT / "jobs/configs" / folder).glob("*.yaml")):
            assert read_jobs([str(path)])[0].file == str(path)
