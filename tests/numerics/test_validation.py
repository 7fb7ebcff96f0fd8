"""The loss on held-out rows: its formula, that it changes nothing, and that it ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from altdiffusion.diffusion import noise
from altdiffusion.diffusion.text_encoder import encode_text
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.data.layout import LATENTS
from altdiffusion.training.data.validation_rows import check_held_out, read_rows
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.run.ended import has_ended
from altdiffusion.training.run.resolve import finished, resolve
from altdiffusion.training.weights import load_models
from tests.numerics.test_continuing import tensors
from tests.ranks import train_by_two
from tests.training_lake import Recorder, config, write_latents

LANGUAGES = ("en", "de", "zh")
HELD_OUT = {"dataset": "held-out", "every": 3, "rows_per_language": 5, "timesteps": 4}


@pytest.fixture
def held_out(lake: str) -> str:
    write_latents(lake, "held-out", 40, seed=9, languages=LANGUAGES)
    return lake


def test_rows_are_spread_over_each_language(held_out: str) -> None:
    version = Lake(held_out).version("held-out")
    rows = read_rows(version, LATENTS, 5)
    table = version.read(["language", "latent"])
    spoken = table["language"].to_pylist()
    assert rows.languages == ("de", "en", "zh") and rows.language.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    german = [row for row, code in enumerate(spoken) if code == "de"]
    for number, place in enumerate((0, 3, 6, 9, 12)):  # 13 rows are in German
        stored = torch.frombuffer(bytearray(table["latent"][german[place]].as_py()), dtype=torch.float16)
        assert torch.equal(rows.tensors["latents"][number].flatten(), stored)
    assert len(read_rows(version, LATENTS, 1000).language) == 40


def test_the_loss_is_its_formula_and_changes_nothing(held_out: str) -> None:
    """At step 0, with the base's weights; and the run is the one that measures nothing, bit for bit."""
    lake, recorder = held_out, Recorder()
    run_local(config(lake, run="plain"), lake, reporter=Recorder())
    measured = config(lake, run="measured", validation=HELD_OUT)
    found = run_local(measured, lake, reporter=recorder)
    assert tensors(lake, "measured", 12) == tensors(lake, "plain", 12)
    assert resolve(measured, lake).fingerprint == resolve(config(lake, run="measured"), lake).fingerprint
    assert [one.step for one in recorder.measurements] == [0, 3, 6, 9, 12]

    run = resolve(measured, lake)
    bundle = load_models(run, None)
    from altdiffusion.diffusion.objective import Noising, Schedule

    schedule = Schedule.of(Noising.of(bundle.scheduler.config, "scheduler"), torch.device("cpu"))
    rows = read_rows(Lake(lake).version("held-out"), LATENTS, 5)
    losses: dict[str, list[float]] = {code: [] for code in rows.languages}
    for row in range(15):
        for part, t in enumerate((125, 375, 625, 875)):  # the middles of four quarters
            eps = noise.keyed_normal(0, torch.tensor([4 * row + part]), noise.NOISE, (4, 4, 4))
            latent, step = rows.tensors["latents"][row : row + 1].float(), torch.tensor([t])
            with torch.no_grad():
                ids = rows.tensors["token_ids"][row : row + 1].long()
                context = encode_text(bundle.text_encoder, ids, int(bundle.tokenizer.pad_token_id))
                noisy = schedule.add_noise(latent, eps, step)
                predicted = bundle.unet(noisy, step, encoder_hidden_states=context).sample
            losses[rows.languages[row // 5]].append(float((predicted - eps).square().mean()))
    first = recorder.measurements[0]
    means = {code: sum(values) / len(values) for code, values in losses.items()}
    for code, mean in means.items():
        assert first.metrics[f"validation/loss/{code}"] == pytest.approx(mean, rel=1e-5)
    assert first.metrics["validation/loss"] == pytest.approx(sum(means.values()) / 3, rel=1e-5)
    assert "held-out loss at step 0" in first.text and "the lowest so far" in first.text
    assert found.state()["validation"]["without_improvement"] == 0


def test_two_workers_measure_what_one_measures(held_out: str, tmp_path: Path) -> None:
    lake, alone = held_out, Recorder()
    run_local(config(lake, run="one", steps=6, validation=HELD_OUT), lake, reporter=alone)
    two = config(lake, run="two", steps=6, micro_batch=2, workers={"count": 2}, validation=HELD_OUT)
    train_by_two(lake, tmp_path / "store", two)
    first, second = (checkpoints.open_step(lake, name, 6).state()["validation"] for name in ("one", "two"))
    assert second["best"] == pytest.approx(first["best"], rel=1e-5)
    assert second["best_step"] == first["best_step"]


def test_a_run_ends_when_the_loss_no_longer_falls(held_out: str) -> None:
    """With a rate that destroys the model; resumed equals undisturbed; a larger patience goes on."""
    wild = {"lr": 0.5, "warmup_steps": 0, "ema_decay": 0.0}
    settings: dict[str, Any] = {"optimizer": wild, "keep_last": 9}
    ends = config(held_out, run="ends", validation=HELD_OUT | {"patience": 2}, **settings)
    recorder = Recorder()
    found = run_local(ends, held_out, reporter=recorder)
    assert found.step == 6 and found.state()["validation"]["best_step"] == 0
    assert recorder.reports[-1].step == 6 and "lowest at step 0" in recorder.warnings[-1]
    assert finished(ends, held_out) == found and run_local(ends, held_out, reporter=Recorder()) == found
    assert not has_ended(config(held_out, run="ends", **settings), found)
    begun = config(held_out, run="begun", validation=HELD_OUT | {"patience": 2}, **settings | {"steps": 3})
    run_local(begun, held_out, reporter=Recorder())
    again = config(held_out, run="begun", validation=HELD_OUT | {"patience": 2}, **settings)
    assert run_local(again, held_out, reporter=Recorder()).step == 6
    assert tensors(held_out, "begun", 6) == tensors(held_out, "ends", 6)
    longer = config(held_out, run="ends", validation=HELD_OUT | {"patience": 3}, **settings)
    assert run_local(longer, held_out, reporter=Recorder()).step == 9


def test_what_is_trained_on_is_refused(held_out: str) -> None:
    lake = Lake(held_out)
    with pytest.raises(
        AltDiffusionError, match=r"has 40 of its 40 images in common with dataset:latents@.*held_out: 0.01"
    ):
        check_held_out(lake.version("held-out"), [lake.version("latents")])


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"validation": HELD_OUT | {"every": 4, "patience": 2}}, "validation.every"),
        ({"validation": HELD_OUT | {"patience": 2}, "keep_last": 2}, "keep the last 3"),
        ({"validation": HELD_OUT | {"timesteps": 0}}, "timesteps"),
    ],
)
def test_an_invalid_setting_is_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(AltDiffusionError, match=part):
        config("lake", **changes)


def test_held_out_latents_must_fit_the_run(lake: str) -> None:
    write_latents(lake, "held-out", 8, seed=9, shape=(3, 4, 4))
    with pytest.raises(AltDiffusionError, match="held-out"):
        resolve(config(lake, validation=HELD_OUT), lake)
    with pytest.raises(AltDiffusionError, match="none"):
        resolve(config(lake, validation=HELD_OUT | {"dataset": "none"}), lake)
