"""run.json is read from a lake: whatever it states, it is one message, or a record that all its readers can use."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.config import resolved, semantic
from altdiffusion.diffusion.objective import Noising
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import evaluations
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.exports import card
from altdiffusion.training.exports.scores import evaluated, model_index
from altdiffusion.training.order.run_key import RunKey
from altdiffusion.training.run.record import config_of, noising_of, read_record
from tests.training_lake import config
from tests.unit.test_forged_lake import NASTY, leaves, replaced

DIGEST = "0" * 64


def record() -> dict[str, Any]:
    run: TrainConfig = config("lake", run="quality", stage="quality")
    return {
        "run": "quality", "stage": "quality", "fingerprint": DIGEST, "datasets": [f"dataset:latents@{DIGEST}"],
        "mirrored": [], "base": "/nowhere/base", "text_encoder": None, "student": None, "teacher": None,
        "start": f"checkpoint:alignment/step-00000100@{DIGEST}", "start_fingerprint": DIGEST,
        "models": [f"model:base@{DIGEST}"], "meaning": semantic(run), "config": resolved(run),
        "noising": asdict(Noising(prediction="epsilon")), **RunKey.of(run).record(),
    }  # fmt: skip


def use(lake: str, record: dict[str, Any]) -> None:
    """Use a record as resuming, exports and cards do."""
    RunKey.read(record, "run.json")
    noising_of(record).check("run.json")
    config_of(record)
    card._use({}, record)
    card._start_of(record)
    stage = card._Stage(run="quality", step=100, record=record)
    card._made_from(list(card._origins(record)), [stage])
    card._data([stage], dict.fromkeys(record["datasets"]))
    card._settings([stage])
    card._stages(lake, f"checkpoint:quality/step-00000100@{DIGEST}")


def test_a_record_is_refused_or_usable(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints/quality/run.json"
    file.parent.mkdir(parents=True)
    whole = record()
    file.write_text(json.dumps(whole))
    found = read_record(str(tmp_path), "quality")
    assert found is not None
    use(str(tmp_path), found)
    places = list(leaves(whole))

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(st.sampled_from(places), st.sampled_from([*NASTY, f"checkpoint:a/b/step-x@{DIGEST}", "step-1", [[1, -1]]]))
    def forged(place: tuple[Any, ...], nasty: Any) -> None:
        file.write_text(json.dumps(replaced(whole, place, nasty)))
        try:
            readable = read_record(str(tmp_path), "quality")
            assert readable is not None
            use(str(tmp_path), readable)
        except AltDiffusionError as error:
            assert len(str(error)) < 2000

    forged()


def quoted(lake: str) -> str:
    """Return the card's text and metadata of what the evaluations of a model found."""
    found = list(evaluated(lake, DIGEST))
    model_index("night", found)
    return card._scores(found)


def test_a_report_of_an_evaluation_is_refused_or_quotable(tmp_path: Path) -> None:
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "total": 10}
    state = {"state": "a", "concepts": 4, "languages": {"all": {"en": rate}}, "others": {"all": rate}}
    measured = {"languages": {"en": {**rate, "rows": 10}}, "mean": {**rate, "rows": 10}}
    sampling = {"sampler": "ddim", "steps": 5, "guidance_scale": 3.0, "dtype": "float32", "device": "cpu"}
    whole = {
        "level": 0.95, "chance": 0.25, "states": [state], "models": {"a": DIGEST},
        "measures": {"states": {"a": {"clip_sim_english": measured}}, "about": {"features": "a network"}},
        "protocol": {"sampling": sampling, "cases": DIGEST, "images": ["a", "b"]},
    }  # fmt: skip
    evaluations.write(str(tmp_path), "night", whole, {"a": DIGEST})
    assert "50.0 %" in quoted(str(tmp_path))
    places = list(leaves(whole))

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(st.sampled_from(places), st.sampled_from(NASTY))
    def forged(place: tuple[Any, ...], nasty: Any) -> None:
        (tmp_path / "evaluations/night.json").write_text(json.dumps(replaced(whole, place, nasty)))
        with contextlib.suppress(AltDiffusionError):
            quoted(str(tmp_path))

    forged()
