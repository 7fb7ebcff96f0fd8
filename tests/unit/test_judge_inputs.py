"""Labels with uses, and the refusal of judge and control images that a model has learned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from altdiffusion.config import fingerprint
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.judge_images import Codec, RealImages, read_images, small_images
from altdiffusion.evaluation.judge_training import train_judge
from altdiffusion.evaluation.labels import find_labelled
from altdiffusion.evaluation.outcomes import Case
from altdiffusion.evaluation.shared_images import near
from altdiffusion.evaluation.state_variety import Read, SpaceOfImages
from altdiffusion.evaluation.training_data import hashes_of, training_data
from altdiffusion.evaluation.variety import Variety
from altdiffusion.lineage.graph import scan
from altdiffusion.lineage.mlflow_view import find_model
from altdiffusion.lineage.tracking import connect
from altdiffusion.storage import evaluations
from altdiffusion.storage.dataset import Lake, Version
from jobs.evaluate import JOB
from jobs.harness import main
from pipelines.evaluate import survey
from tests import evaluation_lake, lineage_lake
from tests.evaluation_lake import config, tree, write_labels


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two artists' images: 1 to 4 for the generator, which has learned from them, and 11 to 16 for the judge.

    Image 15 looks like the generator's 2.
    """
    lake = evaluation_lake.make_lake(tmp_path_factory.mktemp("judge"))
    generators = evaluation_lake.write_real(lake, "generators", range(1, 5))
    evaluation_lake.write_real(lake, "judges", range(11, 17), alike={15: 2})
    evaluation_lake.train_on(lake, "align", generators)
    return lake


JUDGE: list[tuple[int, str, str | None]] = [(11, "cat", None), (12, "dog", "judge"), (16, "owl", "judge")]
CONTROL: list[tuple[int, str, str | None]] = [(13, "cat", "control"), (14, "dog", "control")]
GENERATOR: list[tuple[int, str, str | None]] = [(1, "cat", "generator"), (2, "dog", "generator")]


def settings(lake: str, labels: str, **changes: Any) -> dict[str, Any]:
    """Return a config whose second state has learned from the generator's images."""
    states = [
        {"name": "base", "model": {"folder": f"{lake}/models/base"}},
        {"name": "trained", "model": {"run": "align"}},
    ]
    return {"images": ["judges", "generators"], "labels": labels, "states": states, **changes}


def test_each_image_has_one_use(lake: str, tmp_path: Path) -> None:
    versions = [Lake(lake).version(name) for name in ("judges", "generators")]
    found = find_labelled(versions, write_labels(tmp_path / "l.parquet", [*GENERATOR, *CONTROL, *JUDGE]))
    assert found.rows == 3 and found.side == 48
    assert found.concepts("judge") == {"cat": 1, "dog": 1, "owl": 1}
    assert found.table["sample_id"].to_pylist() == [11, 12, 13, 14, 16, 1, 2]  # in the datasets' order
    real = read_images(found, 16)
    assert {use: one.shown.tolist() for use, one in real.items()} == {
        "judge": ["cat", "dog", "owl"], "control": ["cat", "dog"], "generator": ["cat", "dog"]
    }  # fmt: skip
    assert real["judge"].pixels.shape == (3, 16, 16, 3)
    for rows, part in (
        ([*JUDGE, (13, "cat", "test")], "have the use 'test' for sample 13"),
        ([*JUDGE, (11, "cat", "control")], "label sample 11 and 0 others twice, differently"),
        (CONTROL, "do not name an image of dataset:judges@"),
    ):
        with pytest.raises(AltDiffusionError) as caught:
            find_labelled(versions, write_labels(tmp_path / "l.parquet", rows))
        assert part in str(caught.value)


def test_a_file_with_two_uses_is_refused(lake: str, tmp_path: Path) -> None:
    """Two rows of one image, with different captions and so with different sample ids."""
    rows = [{"sample_id": number, "image_sha256": "ab" * 32, "language": "en"} for number in (7, 8)]
    again = lineage_lake.publish(Lake(lake), "again", "images", rows, [])
    labels = write_labels(tmp_path / "l.parquet", [(7, "cat", "judge"), (8, "cat", "control")])
    with pytest.raises(AltDiffusionError, match="give image abababababab the uses control and judge"):
        find_labelled([again], labels)


def test_lineage_names_what_a_state_learned_from_and_what_is_unknown(lake: str) -> None:
    graph = scan(lake)
    (checkpoint,) = (ref for ref, node in graph.nodes.items() if node.kind == "checkpoint")
    data = training_data(graph, [checkpoint])
    assert [version.ref.name for version in data.latents] == ["align-latents"] and data.rows == 4
    assert [version.ref.name for version in data.images] == ["generators"]
    assert data.unknown == ("model:base@bbbbbbbbbbbb",)
    nobody = training_data(graph, ["model:else@" + "c" * 64])
    assert nobody.latents == () and nobody.unknown == ("model:else@cccccccccccc",)


def test_hashes_are_near_within_some_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0).integers(-(2**63), 2**63, 400, dtype=np.int64)
    mine = np.concatenate([random[:30] ^ 0b1111, random[30:60] ^ 0b11111, [np.int64(0)]])
    expected = [True] * 30 + [False] * 30 + [False]  # a hash without structure is near to none
    assert near(mine, np.append(random, 0), 4).tolist() == expected
    monkeypatch.setattr("altdiffusion.evaluation.shared_images._PAIRS", 300)  # several blocks
    assert near(mine, np.append(random, 0), 4).tolist() == expected
    assert near(mine, random, 5)[:60].all()


def test_images_that_a_state_has_learned_from_are_refused(
    lake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(rows: list[tuple[int, str, str | None]], **judge: Any) -> tuple[str, str]:
        labels = write_labels(tmp_path / "l.parquet", rows)
        result = survey(config(lake, **settings(lake, labels, judge=judge)))
        return "\n".join(result.lines), "\n".join(map(str, result.problems))

    lines, problems = found([*JUDGE, *CONTROL, *GENERATOR])
    assert problems == ""
    for part in (
        "that show 3 concepts, and answers with 2 of them; it reads 32 pixels",
        "judge  2 of 2 control images show a concept of the cases",
        "judge  2 of 2 generator images show a concept of the cases",
        "base  unknown training data: model:base@",
        "trained  learned from 4 rows of dataset:align-latents@",
        "; unknown training data: model:base@bbbbbbbbbbbb",
    ):
        assert part in lines
    assert "training accuracy" in found(JUDGE)[0]

    shared = [*JUDGE, *CONTROL, (15, "dog", "judge"), (1, "cat", "control"), (3, "cat", "judge")]
    problems = found(shared)[1]
    assert "(trained: 2 of the same file (samples 1, 3) and 1 that look alike (samples 15))" in problems.replace(
        "samples 3, 1", "samples 1, 3"
    )
    assert "label them generator" in problems and problems.count("\n") == 0
    assert "2 of the same file" in found(shared, near_bits=None)[1]
    assert "look alike" not in found(shared, near_bits=None)[1]
    lines, problems = found([*JUDGE, (15, "dog", "judge")], compared_at_most=3)
    assert problems == "" and "warning  Of trained, images that look alike were not looked for" in lines
    with monkeypatch.context() as patch:  # an image that was taken down since
        patch.setattr("altdiffusion.evaluation.shared_images.hashes_of", lambda *given: hashes_of(*given).slice(1))
        assert "warning  Of trained, 1 training images are not in this lake" in found([*JUDGE])[0]
    lines, problems = found(shared, shared="allow")
    assert problems == "" and "warning  Judge or control images are among those" in lines


def test_settings_that_decide_nothing_leave_the_fingerprint(lake: str) -> None:
    before = fingerprint(config(lake))
    assert fingerprint(config(lake, judge={"steps": 2, "shared": "allow", "near_bits": None})) == before
    assert fingerprint(config(lake, images="images")) == before != fingerprint(config(lake, images=["images"]))
    for judge, part in (
        ({"side": 33}, "is neither own nor a multiple of 8"),
        ({"side": "big"}, "judge.side"),
        ({"side": "own", "side_at_most": 100}, "is not a multiple of 8"),
    ):
        with pytest.raises(AltDiffusionError, match=part):
            config(lake, judge=judge)
    with pytest.raises(AltDiffusionError, match="is empty, or names a dataset twice"):
        config(lake, images=["images", "images"])


def test_the_job_reports_controls_memorisation_and_diversity(lake: str, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "l.parquet", [*JUDGE, *CONTROL, *GENERATOR])
    sampling = {"steps": 1, "guidance_scale": 1.0, "batch_rows": 4, "count": 2}
    path = tmp_path / "job.yaml"
    job = tree(lake, **settings(lake, labels, name="honest", sampling=sampling, judge={"steps": 2, "side": "own"}))
    path.write_text(yaml.safe_dump(job))
    assert main(JOB, ["--config", str(path)]) == 0
    report = json.loads(Path(evaluations.uri_of(lake, "honest")).read_text())
    assert report["judge"] == {"images": 3, "learned": 3, "answers": 2, "side": 16}
    assert report["chance"] == 0.5 and report["protocol"]["answers"] == 2 and report["warnings"] == []
    assert {name: rate["total"] for name, rate in report["controls"].items()} == {
        "images that neither model nor judge saw": 2,
        "the same through the autoencoder": 2,
        "the model's own training images through the autoencoder": 2,
        "last state, captions shuffled": 8,
    }
    base, trained = (report["variety"][state] for state in ("base", "trained"))
    assert base["near_copies"] is None and "lineage names no dataset" in base["absent"][0]
    assert trained["near_copies"]["total"] == 8 and trained["nearest"] > 0 and trained["absent"] == []
    assert trained["seeds"]["total"] == 4 and trained["languages"]["total"] == 2
    tracking = connect(None, lake, "altdiffusion")
    checkpoint = next(ref for ref in Lake(lake).version("honest-trained").manifest.parents if "checkpoint:" in ref)
    model = find_model(tracking, checkpoint)
    assert model is not None
    metrics = {metric.key: metric.value for metric in tracking.client.get_logged_model(model).metrics}
    assert metrics["measured/trained/near_copies"] == trained["near_copies"]["value"]
    assert metrics["measured/trained/diversity_seeds"] == trained["seeds"]["value"]
    text = Path(f"{lake}/out/table.md").read_text()
    for part in ("learned 3 concepts from 3 real images at 16 pixels and answer with 2", "Memorisation and diversity"):
        assert part in text
    assert len(list(Path(lake, "judges").glob("*.safetensors"))) == 1


def test_a_table_of_training_images_is_found_out(lake: str) -> None:
    """A model that returns its training images, as the VAE leaves them, draws near copies only."""
    versions = [Lake(lake).version(name) for name in ("judges", "generators")]
    codec, side = Codec(f"{lake}/models/base/vae"), 32

    def pixels(version: Version) -> np.ndarray:
        return small_images(version.read(["image"])["image"].to_pylist(), side)

    judges, learned = map(pixels, versions)
    judge = train_judge(judges[[0, 1, 5]], np.arange(3), 0, steps=5)
    control = RealImages(pixels=judges[2:4], shown=np.array(["cat", "dog"]))
    real = {"judge": RealImages(pixels=judges[:2], shown=np.array(["cat", "dog"])), "control": control}
    graph = scan(lake)
    checkpoint = next(ref for ref, node in graph.nodes.items() if node.kind == "checkpoint")
    data = training_data(graph, [checkpoint])
    cases = [Case(concept=concept, language="en", group="pictures") for concept in ("cat", "dog", "owl", "sun")]

    def near_copies(images: np.ndarray, at_most: int = 4) -> Variety:
        space = SpaceOfImages(lambda images: judge.read(codec(images))[1], side, real, at_most)
        features = judge.read(codec(images))[1]
        named = np.full((1, len(images)), "cat")
        return space.variety(Read(ids=list("abcd")[: len(images)], named=named, features=features), cases, data)

    found = near_copies(learned)
    assert found.near_copies is not None and found.near_copies.value == 1.0
    assert found.nearest == pytest.approx(0, abs=1e-5)
    unseen = near_copies(np.tile(control.pixels, (2, 1, 1, 1))).near_copies
    assert unseen is not None and unseen.value == 0.0
    assert near_copies(learned, at_most=3).absent[0] == (
        "memorisation: it learned from more than 3 images (judge.compared_at_most)"
    )


def test_other_judges_are_another_evaluation(lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The job is not done while its report is of another judge, or has not met what is now required."""
    path = tmp_path / "job.yaml"
    labels = write_labels(tmp_path / "l.parquet", JUDGE)

    def ran(**changes: Any) -> tuple[int, bool]:
        path.write_text(yaml.safe_dump(tree(lake, **settings(lake, labels, name="again", **changes))))
        capsys.readouterr()
        code = main(JOB, ["--config", str(path)])
        return code, "[judge]" in capsys.readouterr().out

    assert ran() == (0, True) and ran() == (0, False)
    assert ran(judge={"steps": 3}) == (0, True)
    none = {"others_at_least": 0, "others_to_english_at_least": 0, "lowest_to_english_at_least": 0}
    bad = {**none, "concepts_at_least": 2, "states": {"base": {"at_least": 1.0}}}
    good = {**bad, "states": {"base": {"at_most": 1.0}}}
    assert ran(judge={"steps": 3}, require=bad) == (2, True)
    assert ran(judge={"steps": 3}, require=bad) == (2, True)  # it does not count as done
    assert ran(judge={"steps": 3}, require=good) == (0, True) and ran(judge={"steps": 3}, require=good) == (0, False)
    with pytest.raises(AltDiffusionError, match=r"require\.states\.nobody.*is not a state"):
        config(lake, require={**good, "states": {"nobody": {"at_most": 1.0}}})
