"""Two runs or stages with one seed meet other rows, noise and timesteps; the same run meets the same ones, whatever was
restarted; runs that earlier versions began keep the key they began with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files
from altdiffusion.training.data.loader import Loader
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data, train_loop
from altdiffusion.training.model.lora import adapters
from altdiffusion.training.order.batches import BucketOrder, Order, Part
from altdiffusion.training.order.run_key import SEED_ALONE, RunKey
from altdiffusion.training.run.record import read_record
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.seen import seen
from altdiffusion.training.tasks import DiffusionTask
from altdiffusion.training.weights import load_models
from tests.training_lake import Recorder, config, replace, write_latents

CPU = torch.device("cpu")


def own(lake: str, **changes: Any) -> Any:
    """Return a config with the key of its name and stage."""
    return config(lake, key=None, **changes)


def test_the_seed_is_its_closed_form() -> None:
    settings_ = own("/none", run="quality-1", stage="quality")
    inputs = json.dumps({"draws": 2, "run": "quality-1", "stage": "quality"}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(inputs.encode()).hexdigest()
    key = RunKey.of(settings_)
    assert key.record() == {"draws": {"format": 2, "key": digest}}
    assert key.seed(5) == int(hashlib.sha256(f"{digest}\x1f5".encode()).hexdigest()[:16], 16)
    assert RunKey.read(key.record(), "it") == key
    assert RunKey.read({}, "it") == SEED_ALONE and SEED_ALONE.seed(5) == 5 and SEED_ALONE.record() == {}
    with pytest.raises(AltDiffusionError, match="format 3, this version knows 2"):
        RunKey.read({"draws": {"format": 3, "key": "x"}}, "it")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z0-9][a-z0-9._\-]{0,12}", fullmatch=True),
            st.sampled_from(["alignment", "quality", "guidance"]),
        ),
        min_size=2, max_size=6, unique=True,
    ),
    st.integers(0, 2**63 - 1),
)  # fmt: skip
def test_other_runs_and_stages_have_other_seeds(names: list[tuple[str, Any]], seed: int) -> None:
    base = own("/none")
    seeds = {RunKey.of(replace(base, run=run, stage=stage)).seed(seed) for run, stage in names}
    assert len(seeds) == len(names)
    stage = names[0][1]
    shared = {RunKey.of(replace(base, run=run, stage=stage, key="shared")).seed(seed) for run, _ in names}
    assert len(shared) == 1 and not shared & seeds
    stages = {RunKey.of(replace(base, stage=one, key="shared")).seed(seed) for one in ("alignment", "quality")}
    assert len(stages) == 2


def drawn(lake: str, settings_: Any, step: int = 3) -> dict[str, Any]:
    """Return a run's draws for a batch: rows, coins, noise for the UNet, timesteps, ids after the caption drop."""
    run = resolve(settings_, lake)
    order, rows = open_data(run)
    loader = Loader(order, rows, start=step, stop=step + 1)
    samples = next(iter(loader))
    loader.close()
    task = DiffusionTask(run.config, load_models(run), CPU, run.key)
    got: dict[str, Any] = {"rows": order.batch(step).row.tolist()}
    own_forward = task.unet.forward

    def forward(noisy: Any, timesteps: Any, encoder_hidden_states: Any, **rest: Any) -> Any:
        got.update(noisy=noisy.clone(), timesteps=timesteps.tolist(), context=encoder_hidden_states.clone())
        return own_forward(noisy, timesteps, encoder_hidden_states=encoder_hidden_states, **rest)

    task.unet.forward = forward
    blank = {"latents": torch.zeros_like(samples["latents"]), "token_ids": torch.full_like(samples["token_ids"], 5)}
    task.loss(dataclasses.replace(samples, tensors={**samples.tensors, **blank}))
    return got


def test_a_stage_meets_none_of_the_draws_of_the_one_before(lake: str) -> None:
    """As guidance.yaml follows quality.yaml: same dataset, same seed, same batch."""
    run_local(own(lake, run="quality", stage="quality", steps=1, checkpoint_every=1), lake, reporter=Recorder())
    big = {"global_batch": 64, "micro_batch": 64, "caption_drop": 0.5}
    one = drawn(lake, own(lake, run="quality-2", stage="quality", **big))
    for other_settings in (
        own(lake, run="guidance", stage="guidance", start={"checkpoint": "quality"}, **big),
        own(lake, run="quality-2", stage="guidance", **big),
        own(lake, run="quality-3", stage="quality", **big),
    ):
        other = drawn(lake, other_settings)
        for name in ("rows", "timesteps"):
            assert one[name] != other[name]
        for name in ("noisy", "context"):
            assert not torch.equal(one[name], other[name])
    again = drawn(lake, own(lake, run="quality-2", stage="quality", **big))
    assert all(torch.equal(one[n], again[n]) if isinstance(one[n], torch.Tensor) else one[n] == again[n] for n in one)


def test_two_runs_draws_are_independent(lake: str) -> None:
    """Orders of two runs do not agree more often than two shuffles do."""
    first, second = (open_data(resolve(own(lake, run=name), lake))[0].samples(np.arange(180 * 40)) for name in "ab")
    agree = int((first.row == second.row).sum())  # each position agrees with probability 1 / 180
    assert abs(agree - 40) < 6 * 40**0.5
    seeds = [resolve(own(lake, run=name, flip=0.0), lake).seed for name in "ab"]
    from altdiffusion.diffusion import noise

    at = torch.arange(5000)
    for stream in (noise.NOISE, noise.TIMESTEP, noise.CAPTION_DROP, noise.MIRROR, noise.CROP, noise.LATENT_SAMPLE):
        one, other = (noise.keyed_uniform(seed, at, stream).double() for seed in seeds)
        assert abs(float(torch.corrcoef(torch.stack((one, other)))[0, 1])) < 0.07


def test_adapters_begin_by_the_run(lake: str) -> None:
    found = []
    for name in ("one", "two"):
        run = resolve(own(lake, run=name, lora={"rank": 2}), lake)
        found.append(dict(adapters(load_models(run).unet)))
    down = next(name for name in found[0] if "lora_A" in name)
    assert not torch.equal(found[0][down], found[1][down])


def test_the_key_is_in_record_and_state_and_a_lost_record_is_recovered(lake: str) -> None:
    settings_ = own(lake, steps=6)
    found = run_local(settings_, lake, reporter=Recorder())
    key = RunKey.of(settings_)
    record = read_record(lake, "align")
    assert record is not None and record["draws"] == found.state()["draws"] == {"format": 2, "key": key.digest}
    (Path(lake) / "checkpoints/align/run.json").unlink()
    assert resolve(settings_, lake).key == key


# Runs of earlier versions


MIX = [{"name": "latents", "weight": 1.0}, {"name": "others", "weight": 3.0}]


def begin_as_before(lake: str, settings_: Any) -> ResolvedRun:
    """Train a run as earlier versions did, and leave what they left: no key, no noising."""
    run = resolve(settings_, lake)
    meaning = dict(run.meaning)
    decides = meaning | {
        "datasets": [
            {"ref": str(ref), "weight": d.weight} for ref, d in zip(run.datasets, run.config.datasets, strict=True)
        ]
    }
    digests = [ref.digest for ref in run.models]
    fingerprint = files.sha256_hex(files.canonical_json({"config": decides, "start": {"models": digests}}))
    before = dataclasses.replace(run, key=SEED_ALONE, fingerprint=fingerprint)
    train_loop(before, reporter=Recorder())
    path = Path(lake) / "checkpoints" / run.config.run / "run.json"
    record = json.loads(path.read_text())
    del record["noising"]
    assert "draws" not in record
    path.write_text(json.dumps(record))
    return before


def test_a_run_that_an_earlier_version_began_goes_on_with_its_key(lake: str, tmp_path: Path) -> None:
    """Order, mixture, noise and timesteps: the same tensors as without the change, and `seen` exact for it."""
    write_latents(lake, "others", 23, seed=1)
    settings_ = own(lake, datasets=MIX, steps=12)
    whole = begin_as_before(lake, replace(settings_, run="whole"))
    begin_as_before(lake, replace(settings_, run="half", steps=6))
    found = run_local(replace(settings_, run="half"), lake, reporter=Recorder())
    assert "draws" not in found.state() and "draws" not in (read_record(lake, "half") or {})
    tensors = [
        json.loads((Path(lake) / f"checkpoints/{name}/step-00000012/tensors.json").read_text())
        for name in ("half", "whole")
    ]
    assert tensors[0] == tensors[1]

    order, _ = open_data(whole)
    wanted: Counter[tuple[int, int]] = Counter()
    for n in range(12):
        batch = order.batch(n)
        wanted.update(zip(batch.part.tolist(), batch.row.tolist(), strict=True))
    stated = {
        (part, row): times
        for part, one in enumerate(seen(lake, "half"))
        for row, times in enumerate(one.times.tolist())
    }
    assert Counter({at: times for at, times in stated.items() if times}) == wanted
    new, _ = open_data(resolve(replace(settings_, run="new"), lake))
    assert new.batch(0).row.tolist() != order.batch(0).row.tolist()


def test_orders_of_format_1_are_those_of_the_versions_that_wrote_it() -> None:
    """Digests of part, epoch and row of 4,000 samples, as the version before run keys printed them."""
    parts = [Part(digest="a", rows=180, weight=1.0), Part(digest="b", rows=23, weight=3.0)]
    given_: dict[str, Any] = {"seed": 5, "global_batch": 8, "chunk_rows": 16, "window_chunks": 4, "mixed_draws": True}
    mixed = Order(parts, **given_)
    buckets = BucketOrder([Order([p], **given_) for p in parts], [1.0, 3.00007], seed=5, mixed_draws=True)
    printed = [
        ("520c51726d9977250a20e36967d35b18b51a0ac641fd2bcb5eb9d3d0386764b1", [602, 1806], ["27629e57", "5618d3d0"]),
        ("07c9285ff90d8e6b8e25459d33157a8e75f2417ad625f1f4202ff7875c8b0817", [600, 1808], ["b51e3fd6", "22925b7e"]),
    ]
    for order, (digest, drawn_, times) in zip((mixed, buckets), printed, strict=True):
        found = order.samples(np.arange(4000))
        assert sha256(np.stack((found.part, found.epoch, found.row))) == digest
        assert order.drawn(301) == drawn_
        assert [sha256(one)[:8] for one in order.times(301)] == times


def sha256(values: Any) -> str:
    return hashlib.sha256(values.astype("<i8").tobytes()).hexdigest()
