"""The model card of an export: it states what is in the lake, the hub can read it, and it changes no digest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from altdiffusion.cli import main
from altdiffusion.diffusion.folder import content_digest
from altdiffusion.evaluation.retrieval_accuracy import StateScore
from altdiffusion.evaluation.statistics import Rate
from altdiffusion.evaluation.table import Report
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.settings import ModelConfig
from altdiffusion.storage import evaluations
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.exports.export import export_checkpoint, renew_card
from altdiffusion.training.launch_local import run_local
from jobs.cards import record_scores
from pipelines.evaluate import StateConfig
from tests import kept_evaluation
from tests.training_lake import Recorder, config, write_latents


@pytest.fixture
def trained(lake: str) -> str:
    """Train two stages from a base with a licence; the second one is to be exported."""
    (Path(lake) / "models" / "base" / "README.md").write_text("---\nlicense: openrail++\n---\n")
    write_latents(lake, "fine", 60, seed=4)
    run_local(config(lake, steps=3, trainable="kv"), lake, reporter=Recorder())
    second = config(
        lake, run="quality", stage="quality", steps=2, datasets=[{"name": "fine"}], start={"checkpoint": "align"}
    )
    run_local(second, lake, reporter=Recorder())
    return lake


def report_of(state: str) -> Report:
    rates = {"en": Rate(value=0.875, low=0.8, high=0.9, total=64), "th": Rate(value=0.5, low=0.4, high=0.6, total=64)}
    score = StateScore(
        state=state, concepts=64, languages={"all": rates}, others={"all": rates["th"]}, ratio=rates["th"]
    )
    return Report(states=[score])


def test_the_card_states_what_the_model_is_made_of(trained: str) -> None:
    folder = Path(export_checkpoint(trained, "quality"))
    card = ModelCard.load(folder / "README.md")
    head = card.data.to_dict()
    assert head["license"] == "openrail++"
    assert head["language"] == ["en"]
    assert (head["library_name"], head["pipeline_tag"]) == ("diffusers", "text-to-image")
    text = card.text
    lineage = json.loads((folder / "lineage.json").read_text())
    for name, rows in (("latents", 180), ("fine", 60)):
        assert f"- {name}: {rows} rows; digest `{Lake(trained).version(name).ref.digest}`" in text
    assert "| en English | 180 | 60 |" in text
    assert "| alignment | align | 3 | 24 | kv | the models above |" in text
    assert re.search(r"\| quality \| quality \| 2 \| 16 \| all \| checkpoint:align/step-00000003@[0-9a-f]{12} \|", text)
    assert "lr: 0.001" in text and "No evaluation of this model was run." in text
    assert lineage["checkpoint"] in text and lineage["content"] in text
    assert trained not in text, "a path of this machine"


def test_an_evaluation_enters_the_card_and_not_the_content(trained: str) -> None:
    folder = export_checkpoint(trained, "quality")
    model = resolve_model(ModelConfig(run="quality"), trained)
    first = (Path(folder) / "README.md").read_bytes()
    evaluations.write(trained, "emoji", report_of("final").to_json(), {"final": model.content})
    evaluations.write(trained, "another", report_of("final").to_json(), {"final": "0" * 64})
    renew_card(trained, folder)
    text = (Path(folder) / "README.md").read_text()
    assert "| th Thai | 50.0 % | 40.0 to 60.0 % | 64 |" in text
    assert "emoji, state final" in text and "another, state" not in text
    assert "No evaluation" not in text
    assert content_digest(folder) == model.content
    assert resolve_model(ModelConfig(run="quality"), trained) == model
    (Path(trained) / "evaluations" / "emoji.json").unlink()
    export_checkpoint(trained, "quality")  # the same command repairs it
    assert (Path(folder) / "README.md").read_bytes() == first


def test_an_evaluation_job_updates_the_cards_of_its_models(trained: str) -> None:
    """At its end the job writes the report into the lake and each state's model card again."""
    folder = Path(export_checkpoint(trained, "quality"))
    config: Any = SimpleNamespace(name="emoji", states=[StateConfig(name="final", model=ModelConfig(run="quality"))])
    session: Any = SimpleNamespace(lake=Lake(trained))
    record_scores(config, session, report_of("final"))
    text = (folder / "README.md").read_text()
    assert "| en English | 87.5 % | 80.0 to 90.0 % | 64 |" in text and "64 concepts, chance 1.6 %" in text
    raw = Path(export_checkpoint(trained, "quality", weights="raw"))  # other weights: not the model that was judged
    assert "No evaluation of this model was run." in (raw / "README.md").read_text()


def test_measures_enter_the_card_by_language_and_its_index_for_the_hub(trained: str) -> None:
    folder = Path(export_checkpoint(trained, "quality"))
    model = resolve_model(ModelConfig(run="quality"), trained)
    kept_evaluation.keep(trained, "night", codes=("en", "th", "ar"), models={"guidance": model.content})
    renew_card(trained, str(folder))
    card = ModelCard.load(folder / "README.md")
    assert "night, state guidance: measures, with intervals of 95% in brackets." in card.text
    assert "| language | FID | KID | CLIP-Sim (prompt) | Retrieval R@5 |" in card.text
    assert "| mean | 24.00 | 0.00650 [0.00624, 0.00676] | 0.308 [0.296, 0.320] | 81.0 % [77.8, 84.2] |" in card.text
    assert "| ar Arabic | 25.09 |" in card.text and "resize: clean to 299 pixels" in card.text
    assert "drawn with: ddim, 50 steps, guidance 9, 1 per prompt, float16 on cuda" in card.text
    results = card.data.eval_results
    assert results is not None and card.data.model_name == "quality"
    assert all((one.task_type, one.dataset_type) == ("text-to-image", "night") for one in results)
    values = {one.metric_type: (one.metric_name, one.metric_value) for one in results if one.metric_type != "accuracy"}
    assert values["fid"] == ("FID, mean of 3 languages", 24.0)
    assert values["kid"] == ("KID, mean of 3 languages, 95% interval 0.00624 to 0.00676", 0.0065)
    named = [one.metric_name for one in results if one.metric_type == "accuracy"]
    assert len(named) == 2 and str(named[0]).startswith("Retrieval accuracy, English, 95% interval ")
    assert results[0].dataset_revision == "c" * 64
    again = ModelCard.from_template(card.data, template_str="---\n{{ card_data }}\n---")  # the hub writes it again
    assert again.data.to_dict()["model-index"] == card.data.to_dict()["model-index"]
    assert content_digest(str(folder)) == model.content


def test_the_base_on_the_hub_is_named(lake: str) -> None:
    lineage = {"hub": "hf://someone/small@" + "ab" * 20, "licence": "openrail++", "parents": []}
    (Path(lake) / "models" / "base" / "lineage.json").write_text(json.dumps(lineage))
    run_local(config(lake, steps=1), lake, reporter=Recorder())
    folder = Path(export_checkpoint(lake, "align"))
    assert ModelCard.load(folder / "README.md").data.to_dict()["base_model"] == ["someone/small"]


def test_a_base_without_a_licence_has_an_unknown_one(lake: str) -> None:
    run_local(config(lake, steps=1), lake, reporter=Recorder())
    card = ModelCard.load(Path(export_checkpoint(lake, "align")) / "README.md")
    assert card.data.to_dict()["license"] == "unknown"
    assert "base model base: not recorded" in card.text


def test_the_command_exports(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "align", "--lake", trained, "--weights", "raw"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == Path(trained) / "exports" / "align" / "step-00000003-raw"
    assert "not averaged (non-EMA)" in (folder / "README.md").read_text()
    assert main(["export", "quality/step-00000002", "--lake", trained]) == 0
    assert capsys.readouterr().out.strip().endswith("exports/quality/step-00000002")
    assert main(["export", "quality", "--step", "7", "--lake", trained]) == 2
    assert "those of this run: 2" in capsys.readouterr().err
    assert main(["export", "quality/step-00000002", "--step", "1", "--lake", trained]) == 2
