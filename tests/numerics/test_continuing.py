"""Going on under another name with other settings; and names that a failed start leaves free."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.estimate.cost import kept_steps
from altdiffusion.training.exports.export import export_checkpoint, export_start
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.run.continuing import OVERRIDES
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.resolve import finished, resolve
from altdiffusion.training.seen import seen
from tests.numerics.test_run_key import own
from tests.training_lake import Recorder, config, write_latents

GUARD = {"spike": {"factor": 50.0, "window": 8, "steps": 2}}


def tensors(lake: str, run: str, step: int) -> Any:
    return json.loads((Path(checkpoints.folder_of(lake, run, step)) / "tensors.json").read_text())


@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 2}}, {"guards": GUARD}], ids=["whole", "lora", "guard"])
def test_without_an_override_it_is_the_run_that_was_never_interrupted(lake: str, changes: dict[str, Any]) -> None:
    """Weights, averages and moments after 12 steps, bit for bit; counters and guard; another run in lineage."""
    run_local(own(lake, run="whole", keep_last=9, **changes), lake, reporter=Recorder())
    again = own(lake, run="again", continue_from="whole@6", **changes)
    found = run_local(again, lake, reporter=Recorder())
    assert tensors(lake, "again", 12) == tensors(lake, "whole", 12)
    whole = checkpoints.open_step(lake, "whole", 12).state()
    same = (
        "step",
        "updates",
        "skipped",
        "samples_seen",
        "metrics",
        "draws",
        *(["guard"] if "guards" in changes else []),
    )
    assert {name: found.state()[name] for name in same} == {name: whole[name] for name in same}
    assert found.parents[-1] == str(checkpoints.open_step(lake, "whole", 6).ref)
    assert checkpoints.steps(lake, "again")[0] > 6
    assert finished(again, lake) == found
    assert [(one.run, one.steps, one.samples) for one in seen(lake, "again")] == [("again", 12, 96)]
    assert seen(lake, "again")[0].times.tolist() == seen(lake, "whole")[0].times.tolist()
    folder = export_checkpoint(lake, "again")
    lineage = json.loads((Path(folder) / "lineage.json").read_text())
    assert lineage["datasets"] == [str(ref) for ref in resolve(again, lake).datasets] and lineage["models"]
    card = (Path(folder) / "README.md").read_text()
    assert "| alignment | whole | 6 | 48 |" in card and "| alignment | again | 6 | 48 |" in card
    start = export_start(resolve(again, lake))
    exported = models.load_bundle(start).unet.state_dict()
    at_six = models.load_bundle(export_checkpoint(lake, "whole", step=6)).unet.state_dict()
    assert all(torch.equal(tensor, at_six[name]) for name, tensor in exported.items())


def test_what_another_run_needs_is_not_removed_by_the_run_that_made_it(lake: str) -> None:
    run_local(own(lake, run="whole", steps=6, keep_last=9), lake, reporter=Recorder())
    assert checkpoints.steps(lake, "whole") == [3, 6]
    child = own(lake, run="child", continue_from="whole@3", steps=6)
    run_local(child, lake, reporter=Recorder())
    run_local(own(lake, run="whole", steps=12, keep_last=2), lake, reporter=Recorder())
    assert checkpoints.steps(lake, "whole") == [3, 9, 12]
    assert run_local(own(lake, run="child", continue_from="whole@3", steps=9), lake, reporter=Recorder()).step == 9


def test_another_learning_rate_keeps_moments_and_position(lake: str) -> None:
    """As the CLI is used: the same config, another name, the rate, and where it goes on from; it resumes as any run."""
    run_local(own(lake, run="whole", steps=6), lake, reporter=Recorder())
    slow = {"lr": 1e-5, "warmup_steps": 4, "ema_decay": 0.9}
    recorder = Recorder()
    settings = own(lake, run="slow", continue_from="whole@6", optimizer=slow, steps=9, log_every=1)
    assert settings.first_step == 6 and kept_steps(settings) == [9]
    run_local(settings, lake, reporter=recorder)
    assert [(report.step, report.lr) for report in recorder.reports] == [(7, 1e-5), (8, 1e-5), (9, 1e-5)]
    at_six = checkpoints.open_step(lake, "whole", 6).tensors(checkpoints.UNET)
    at_nine = checkpoints.open_step(lake, "slow", 9).tensors(checkpoints.UNET)
    moved = max(float((at_nine[name] - at_six[name]).abs().max()) for name in at_six)
    assert 0 < moved < 1e-4
    more = own(lake, run="slow", continue_from="whole@6", optimizer=slow, steps=12)
    end = run_local(more, lake, reporter=Recorder())
    straight = run_local(own(lake, run="slow-2", continue_from="whole@6", optimizer=slow), lake, reporter=Recorder())
    assert tensors(lake, "slow", 12) == tensors(lake, "slow-2", 12) and end.step == straight.step
    record = read_record(lake, "slow")
    assert record is not None and record["continued"] == str(checkpoints.open_step(lake, "whole", 6).ref)
    with pytest.raises(AltDiffusionError, match=r"belongs to a run with another optimizer.lr"):
        resolve(own(lake, run="slow", continue_from="whole@6", steps=12), lake)
    shutil.rmtree(Path(lake) / "checkpoints/whole")
    with pytest.raises(AltDiffusionError, match="run whole, named by continue_from of run slow: is not in the lake"):
        resolve(more, lake)


def test_start_may_be_left_out_and_must_agree(lake: str) -> None:
    run_local(own(lake, run="whole", steps=3), lake, reporter=Recorder())
    tree = {"run": "next", "stage": "alignment", "trainable": "all", "continue_from": "whole@3", "steps": 6,
            "datasets": [{"name": "latents"}], "seed": 5, "global_batch": 8, "micro_batch": 4, "caption_drop": 0.25,
            "optimizer": {"lr": 1e-3, "warmup_steps": 4, "ema_decay": 0.9},
            "order": {"chunk_rows": 16, "window_chunks": 4}}  # fmt: skip
    silent = resolve(from_dict(TrainConfig, tree), lake)
    assert silent.fingerprint == resolve(own(lake, run="next", continue_from="whole@3", steps=6), lake).fingerprint
    shutil.copytree(f"{lake}/models/base", f"{lake}/models/same")
    assert resolve(from_dict(TrainConfig, tree | {"start": {"base": f"{lake}/models/same"}}), lake) == silent
    for start in ({"checkpoint": "whole"}, {"base": f"{lake}/models/base", "weights": "raw"}):
        with pytest.raises(AltDiffusionError, match="is not what run whole was started from"):
            resolve(from_dict(TrainConfig, tree | {"start": start}), lake)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": 6}, "seed (5, now 6)"),
        ({"global_batch": 16}, "global_batch (8, now 16)"),
        ({"trainable": "kv"}, "trainable ('all', now 'kv')"),
        ({"stage": "quality"}, "stage ('alignment', now 'quality')"),
        ({"order": {"chunk_rows": 16, "window_chunks": 5}}, "order.window_chunks (4, now 5)"),
        ({"optimizer": {"kind": "adamw_8bit", "lr": 1e-3, "warmup_steps": 4, "ema_decay": 0.9}}, "optimizer.kind"),
        ({"datasets": [{"name": "others"}]}, "datasets (dataset:latents@"),
        ({"datasets": [{"name": "latents", "weight": 2.0}]}, "weights of datasets ([None], now [2.0])"),
        ({"guards": {"skip_batches": [[2, 3]]}}, "changes batches before 3"),
    ],
)
def test_what_may_not_differ_is_named_with_both_values(lake: str, changes: dict[str, Any], part: str) -> None:
    run_local(own(lake, run="whole", steps=3), lake, reporter=Recorder())
    write_latents(lake, "others", 20, seed=2)
    with pytest.raises(AltDiffusionError) as error:
        resolve(own(lake, run="next", continue_from="whole@3", **changes), lake)
    assert part in str(error.value)
    if "guards" not in changes:
        assert all(name in str(error.value) for name in OVERRIDES)
    assert not (Path(lake) / "checkpoints/next").exists()
    later = own(lake, run="next", continue_from="whole@3", guards={"skip_batches": [[3, 5]]}, precision="bf16")
    assert resolve(later, lake).start is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"continue_from": "whole"}, "is not RUN@STEP"),
        ({"continue_from": "../whole@3"}, "is not RUN@STEP"),
        ({"continue_from": "align@3"}, "names the run itself"),
        ({"continue_from": "whole@12"}, "is not more than the 12"),
        ({"continue_from": "whole@3", "key": "other"}, "keeps the key"),
        ({"start": {}}, "start.base: exactly one of base and checkpoint"),
    ],
)
def test_an_invalid_config_is_named(changes: dict[str, Any], part: str) -> None:
    tree = {"key": None, **changes}
    with pytest.raises(AltDiffusionError) as error:
        config("/none", **tree)
    message = (
        str(error.value).replace("key start.base: value None", "start.base:").replace("key steps: value 12", "steps:")
    )
    assert part.split(": ")[-1] in message


def test_a_checkpoint_that_is_not_there_is_named(lake: str) -> None:
    run_local(own(lake, run="whole", steps=6), lake, reporter=Recorder())
    with pytest.raises(AltDiffusionError, match=r"step-00000005.*those of this run: 3, 6"):
        resolve(own(lake, run="next", continue_from="whole@5"), lake)


# A failed start


def test_a_start_that_failed_leaves_the_name_free(lake: str) -> None:
    """On a base whose weights lack a key, which only shows when it is loaded: nothing is left behind, and the corrected
    start of the same name runs."""
    from safetensors.torch import load_file, save_file

    broken = Path(lake) / "models/broken"
    shutil.copytree(Path(lake) / "models/base", broken)
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    tensors_ = load_file(weights)
    del tensors_["conv_in.bias"]
    save_file(tensors_, weights, {"format": "pt"})
    with pytest.raises(AltDiffusionError, match=r"diffusion_pytorch_model.safetensors: lacks the key conv_in.bias"):
        run_local(config(lake, start={"base": str(broken)}), lake, reporter=Recorder())
    assert read_record(lake, "align") is None and not (Path(lake) / "checkpoints").exists()
    assert run_local(config(lake, steps=3), lake, reporter=Recorder()).step == 3


def test_a_name_without_a_checkpoint_is_free_and_one_with_it_is_not(lake: str) -> None:
    """Also one that an earlier version's failed start burnt."""
    run_local(config(lake, steps=3), lake, reporter=Recorder())
    other = config(lake, steps=3, seed=6)
    with pytest.raises(AltDiffusionError, match=r"seed \(5, now 6\).*from its weights by start: {checkpoint: align}"):
        run_local(other, lake, reporter=Recorder())
    shutil.rmtree(Path(checkpoints.folder_of(lake, "align", 3)))
    assert read_record(lake, "align") is not None
    assert run_local(other, lake, reporter=Recorder()).step == 3
    record = read_record(lake, "align")
    assert record is not None and record["meaning"]["seed"] == 6


@pytest.mark.parametrize("weights", [None, 1.0])
def test_one_version_twice_is_refused_by_both_places(lake: str, weights: float | None) -> None:
    digest = resolve(config(lake), lake).datasets[0].digest
    for again in ("latents", f"latents@{digest}", f"latents@{digest[:12]}"):
        datasets = [{"name": "latents", "weight": weights}, {"name": again, "weight": weights}]
        with pytest.raises(AltDiffusionError) as error:
            resolve(config(lake, datasets=datasets), lake)
        for part in ("datasets.0 (latents)", f"datasets.1 ({again})", "name the same version", digest[:12]):
            assert part in str(error.value)
