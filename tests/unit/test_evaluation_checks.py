"""What an evaluation needs is checked before anything is drawn, by the dry run and by the job itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from altdiffusion.config import from_dict, load_config, semantic
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import evaluations
from altdiffusion.storage.dataset import Lake
from jobs.evaluate import JOB
from jobs.harness import main
from pipelines.encode import EncodeJobConfig
from pipelines.evaluate import EvaluateConfig, cases_as_prompts, cases_of, drawing, pipeline_steps, survey, swept_points
from pipelines.generate import GenerateJobConfig
from pipelines.generate import survey as generate_survey
from pipelines.score import ScoreJobConfig
from pipelines.train import TrainJobConfig
from tests import evaluation_lake
from tests.evaluation_lake import config, rows, tree, write_cases


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    return evaluation_lake.make_lake(tmp_path_factory.mktemp("evaluation"))


def problems(lake: str, **changes: Any) -> str:
    return "\n".join(str(problem) for problem in survey(config(lake, **changes)).problems)


def test_a_job_that_fits_is_reported(lake: str) -> None:
    found = survey(config(lake))
    assert not found.problems
    assert "judge  learns from 4 rows of dataset:images" in "\n".join(found.lines)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"cases": "{lake}/none.jsonl"}, "none.jsonl: does not exist"),
        ({"labels": "{lake}/none.parquet"}, "labels {lake}/none.parquet: cannot be used"),
        ({"labels": "{lake}/other.parquet"}, "do not name an image of dataset:images"),
        ({"labels": "{lake}/cats.parquet"}, "name no image of dog in dataset:images"),
        ({"images": "nothing"}, "dataset nothing"),
        ({"autoencoder": "{lake}/none"}, "{lake}/none"),
        ({"states": [{"name": "a", "model": {"run": "nobody"}}]}, "run nobody: has no export"),
        ({"output": "{lake}/cases.jsonl/table"}, "cases.jsonl is a file"),
        ({"output": "s3://away/table"}, "is not a local file"),
        ({"require": {"others_at_least": 0, "others_to_english_at_least": 0, "lowest_to_english_at_least": 0}},
         "has 2 concepts, and require.concepts_at_least is 100"),
    ],
)  # fmt: skip
def test_what_the_job_would_stop_at_is_found_before_it_draws(lake: str, changes: dict[str, Any], part: str) -> None:
    labels = pq.read_table(f"{lake}/labels.parquet")
    pq.write_table(labels.slice(0, 1), f"{lake}/cats.parquet")
    pq.write_table(pa.table({"sample_id": [5], "concept": ["cat"]}), f"{lake}/other.parquet")
    here = json.loads(json.dumps(changes).replace("{lake}", lake))
    assert part.format(lake=lake) in problems(lake, **here)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda row: row.pop("seen"), "row 1, field seen: is missing"),
        (lambda row: row.pop("concept"), "row 1, field concept: is missing"),
        (lambda row: row.update(seen="perhaps"), "row 1, field seen: 'perhaps' is neither true nor false"),
        (lambda row: row.update(group="pictured"), "row 1, field group: 'pictured' is none of pictures, text, unseen"),
        (lambda row: row.update(group="text"), "row 1, field group: is text, and seen is true"),
        (lambda row: row.update(width=17), "width: '17' is not a multiple of 8"),
        (lambda row: row.update(id="dog-en"), "is also the id of an earlier row"),
    ],
)
def test_a_bad_case_is_named_by_its_row(
    lake: str, tmp_path: Path, change: Callable[[dict[str, Any]], object], part: str
) -> None:
    cases = rows()
    change(cases[0])
    assert part in problems(lake, cases=write_cases(tmp_path / "cases.jsonl", cases))


def test_cases_state_how_a_name_was_learned(lake: str, tmp_path: Path) -> None:
    cases = rows()
    for row, group in zip(cases, ("pictures", "text", None, "unseen"), strict=True):
        row.pop("seen")
        row |= {"group": group} if group else {"seen": False}
    path = write_cases(tmp_path / "cases.jsonl", cases)
    groups = [case.group for case in cases_of(config(lake, cases=path)).by_id.values()]
    assert groups == ["pictures", "text", "unseen", "unseen"]
    required = {"others_at_least": 0, "others_to_english_at_least": 0, "lowest_to_english_at_least": 0,
                "concepts_at_least": 2, "text_to_pictures_at_least": 0.8}  # fmt: skip
    assert "has no case of group pictures in a language other than English" in problems(
        lake, cases=path, require=required
    )
    assert problems(lake, cases=path, require={**required, "text_to_pictures_at_least": None}) == ""


def test_cases_are_read_as_prompts_are(lake: str, tmp_path: Path) -> None:
    """Any language and format, ids of any form; U+2028 inside of a prompt and a mark at the file's beginning."""
    cases = rows(("sv", "pt-BR"))
    cases[0] |= {"prompt": "en\u2028katt", "id": "one", "seen": False}
    path = write_cases(tmp_path / "cases.jsonl", cases)
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    read = cases_of(config(lake, cases=path))
    assert read.languages == ["sv", "pt-BR"] and not read.by_id["one"].seen
    assert read.prompts.accepted["prompt"][0].as_py() == "en\u2028katt"
    assert problems(lake, cases=path) == ""

    pq.write_table(pa.Table.from_pylist(cases), tmp_path / "cases.parquet")
    header = list(cases[0])
    lines = [",".join(header), *(",".join(str(row[name]) for name in header) for row in cases)]
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    for name in ("cases.parquet", "cases.csv"):
        again = cases_of(config(lake, cases=str(tmp_path / name)))
        assert (again.by_id, again.images) == (read.by_id, read.images)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"states": [{"name": "After", "model": {"run": "x"}}]}, "states.0.name"),
        ({"states": [{"name": "prompts", "model": {"run": "x"}}]}, "is that of the dataset of prompts"),
        ({"states": []}, "name at least one state"),
        ({"name": "Night"}, "key name: value 'Night' is not a valid name of a dataset"),
        ({"judge": {"seeds": 0}}, "must be at least 1"),
        ({"sampling": {"dtype": "float16"}}, "float16 does not run on a CPU"),
        ({"sampling": {"negative_prompt": "x" * 20_000}}, "key sampling.file_record"),
        ({"sweep": {}}, "is empty, and so is steps"),
        ({"sweep": {"steps": [5, 5]}}, "contains the same value twice"),
        ({"sweep": {"steps": [2000]}}, "sweep.steps"),
        ({"sweep": {"guidance_scale": [101]}}, "sweep.guidance_scale"),
        (
            {"sweep": {"steps": [2]}, "states": [{"name": name, "model": {"run": "x"}} for name in ("a", "a-s2")]},
            "have the name a-s2, which a set of the sweep has",
        ),
        ({"labels": None}, "key labels: value None is missing, and so is measures"),
        ({"autoencoder": None}, "is missing, which the judge's control needs"),
    ],
)
def test_names_that_no_dataset_can_have_are_refused_at_once(lake: str, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(AltDiffusionError) as caught:
        config(lake, **changes)
    assert part in str(caught.value)


def test_a_folder_that_cannot_be_written_is_refused(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).endswith("lake"))
    assert "lake is not writable" in problems(lake)


def test_the_job_draws_nothing_before_its_checks(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tree(lake, name="bad", labels=f"{lake}/none.parquet")))
    for dry in (["--dry-run"], []):
        assert main(JOB, ["--config", str(path), *dry]) == 2
        assert "labels" in capsys.readouterr().err
    assert not [name for name in Lake(lake).names() if name.startswith("bad")]


def test_several_seeds_and_judges_leave_outcomes_that_can_be_compared(lake: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    write_cases(tmp_path / "cases.jsonl", rows(("sv",)))
    sampling = {"steps": 1, "guidance_scale": 1.0, "batch_rows": 4, "count": 3}
    path.write_text(
        yaml.safe_dump(tree(lake, cases=f"{tmp_path}/cases.jsonl", sampling=sampling, judge={"steps": 2, "seeds": 2}))
    )
    assert main(JOB, ["--config", str(path)]) == 0
    document = json.loads(Path(evaluations.uri_of(lake, "night")).read_text())
    assert set(document["judges"]) == {"0", "1"} and document["protocol"]["sampling"]["count"] == 3
    table = evaluations.read_outcomes(lake, "night", document["outcomes"])
    assert table["state"].to_pylist() == ["before"] * 2 + ["after"] * 2
    assert table["images"].to_pylist() == [3] * 4 and Lake(lake).version("night-after").rows == 6
    (change,) = document["changes"]
    assert (change["languages"]["sv"]["value"], change["languages"]["sv"]["p"]) == (0.0, 1.0)
    assert "By judge" in Path(f"{lake}/out/table.txt").read_text()
    assert "before and after" in Path(f"{lake}/out/table-changes.html").read_text()


def test_a_sweep_names_its_sets_and_leaves_old_fingerprints_alone(lake: str) -> None:
    plain = config(lake)
    swept = config(lake, sweep={"guidance_scale": [7.5, 1.0, 3.0], "steps": [2, 1]})
    names = ["g3", "g7.5", "s2"]  # 1.0 and 1 are the values of `sampling`
    sets = [f"{state}-{name}" for state in ("before", "after") for name in names]
    assert [point.name for point in swept_points(swept)] == sets
    assert list(pipeline_steps(swept)) == ["before", "after", *sets]
    drawn = [drawing(swept, swept.states[0], point) for point in swept_points(swept)[:3]]
    assert [(one.guidance_scale, one.steps) for one in drawn] == [(3.0, 1), (7.5, 1), (1.0, 2)]
    assert {"sweep", "seed", "measures"}.isdisjoint(semantic(plain)) and "sweep" in semantic(swept)
    assert cases_as_prompts(config(lake, seed=54551)).default_seed == 54551


def test_numbers_of_steps_that_a_schedule_does_not_support_are_found_before_drawing(lake: str) -> None:
    assert "steps 999 with sampler dpmpp" in problems(
        lake, sampling={"sampler": "dpmpp", "steps": 2}, sweep={"steps": [5, 999]}
    )


def test_a_sweep_is_drawn_judged_and_plotted(lake: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        yaml.safe_dump(tree(lake, name="swept", output=f"{tmp_path}/table", sweep={"guidance_scale": [1, 2]}))
    )
    assert main(JOB, ["--config", str(path)]) == 0
    document = json.loads(Path(evaluations.uri_of(lake, "swept")).read_text())
    assert [place["name"] for place in document["sweep"]["points"]] == ["before", "before-g2", "after", "after-g2"]
    assert [score["state"] for score in document["sweep"]["scores"]] == ["before-g2", "after-g2"]
    rows = (tmp_path / "table.md").read_text().partition("### Sweeps")[2].splitlines()[4:8]
    shown = [row.split("|")[1:4] for row in rows]
    assert [[cell.strip() for cell in row] for row in shown] == [
        ["guidance_scale", value, state] for value in ("1", "2") for state in ("before", "after")
    ]
    assert [state["state"] for state in document["states"]] == ["before", "after"]  # the table stays as it was
    table = evaluations.read_outcomes(lake, "swept", document["outcomes"])
    assert set(table["state"].to_pylist()) == {"before", "after", "before-g2", "after-g2"}
    rows = Lake(lake).version("swept-after-g2").read(["guidance_scale", "seed"]).to_pylist()
    assert {row["guidance_scale"] for row in rows} == {2.0} and sorted({row["seed"] for row in rows}) == [0, 1]
    assert "over guidance scale" in (tmp_path / "table.html").read_text()
    assert (tmp_path / "table-accuracy-guidance-scale.svg").is_file()
    assert main(JOB, ["--config", str(path)]) == 0  # already there


def test_evaluation_draws_as_its_config_states() -> None:
    settings = load_config(EvaluateConfig, "jobs/configs/m18/evaluate.yaml", [])
    drawn = drawing(settings, settings.states[0])
    assert (drawn.device, drawn.dtype, drawn.file_naming) == ("cuda", "float16", "none")


JOBS: dict[str, tuple[type, str, str, str]] = {
    "generate": (GenerateJobConfig, "jobs/configs/m18/generate.yaml", "generate.device", "workers"),
    "evaluate": (EvaluateConfig, "jobs/configs/m18/evaluate.yaml", "sampling.device", "workers"),
    "score": (ScoreJobConfig, "jobs/configs/m18/score.yaml", "score.device", "workers"),
    "encode": (EncodeJobConfig, "jobs/configs/m18/encode.yaml", "encode.device", "workers"),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_pool_whose_gpus_and_device_do_not_fit_is_refused(job: str) -> None:
    cls, path, device, pool = JOBS[job]
    evaluation = ["sampling.dtype=float32", "measures.device=cpu"]
    other = ["generate.dtype=float32"] if job == "generate" else evaluation if job == "evaluate" else []
    with pytest.raises(AltDiffusionError, match=rf"'cpu' leaves the GPUs idle that {pool}.gpus: 1 reserves"):
        load_config(cls, path, [f"{device}=cpu", *other])
    with pytest.raises(AltDiffusionError, match=rf"'cuda' needs a GPU, and {pool}.gpus: 0 reserves none"):
        load_config(cls, path, [f"{pool}.gpus=0"])
    load_config(cls, path, [f"{device}=cpu", f"{pool}.gpus=0", *other])
    load_config(cls, path, ["execution.backend=inline", f"{pool}.gpus=0"])


def test_samples_and_pools_without_use_for_a_gpu_are_refused_too() -> None:
    from pipelines.curate import CurateConfig
    from pipelines.parallel import ParallelConfig

    samples = "samples={prompts: {file: p.jsonl}, fonts: f, workers: {gpus: 1}}"
    with pytest.raises(AltDiffusionError, match=r"samples\.device: value 'cpu' leaves the GPUs idle"):
        load_config(TrainJobConfig, "jobs/configs/m18/quality.yaml", [samples])
    for cls, name, pool in (
        (CurateConfig, "curate", "select_workers"),
        (CurateConfig, "curate", "download_workers"),
        (ParallelConfig, "parallel", "workers"),
    ):
        with pytest.raises(AltDiffusionError, match=f"leaves the GPUs idle that {pool}.gpus: 1"):
            load_config(cls, f"jobs/configs/m18/{name}.yaml", [f"{pool}.gpus=1"])


def test_a_sheet_that_cannot_be_drawn_stops_the_dry_run_of_generation(
    lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fonts").mkdir()
    job = {
        "lake": lake, "execution": {"backend": "inline"},
        "sheet": {"file": f"{tmp_path}/a.png", "fonts": f"{tmp_path}/fonts"},
        "generate": {"model": {"folder": f"{lake}/models/base"}, "prompts": {"file": f"{lake}/cases.jsonl"}},
    }  # fmt: skip
    (problem,) = generate_survey(from_dict(GenerateJobConfig, job)).problems
    assert "holds no fonts" in str(problem)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    (problem,) = generate_survey(from_dict(GenerateJobConfig, job)).problems
    assert "resvg_py" in str(problem)
