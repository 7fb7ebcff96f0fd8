"""The loop against formulas written out by hand, and against itself with other micro-batches and workers."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from altdiffusion.diffusion import models, noise
from altdiffusion.diffusion.objective import Schedule
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.config import OptimizerConfig
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data
from altdiffusion.training.model.text_cache import TextCache
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.tasks import DiffusionTask
from altdiffusion.training.update.gradients import SummedGradients
from altdiffusion.training.update.optimizers import Ema
from altdiffusion.training.update.trainer import Trainer
from altdiffusion.training.weights import load_models
from tests.ranks import train_by_two
from tests.training_lake import SHAPE, Recorder, config, write_latents

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


def weights(found: Checkpoint, name: str = checkpoints.UNET) -> Tensors:
    return found.tensors(name)


def assert_close(one: Tensors, other: Tensors, tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_warm_up_is_linear_then_constant() -> None:
    settings = OptimizerConfig(lr=1e-4, warmup_steps=10_000)
    assert settings.lr_at(0) == pytest.approx(1e-8)
    assert settings.lr_at(4_999) == pytest.approx(5e-5)
    assert settings.lr_at(9_999) == settings.lr_at(10_000) == settings.lr_at(10**6) == 1e-4
    assert OptimizerConfig(lr=3e-4, warmup_steps=0).lr_at(0) == 3e-4


def test_ema_decay_is_the_published_formula() -> None:
    settings = OptimizerConfig()
    assert settings.ema_decay_at(1) == pytest.approx(2 / 11)
    assert settings.ema_decay_at(90) == pytest.approx(0.91)
    assert settings.ema_decay_at(10**6) == 0.9999


def test_ema_is_its_closed_form() -> None:
    """After n updates the average is the sum of all weights so far, each times its decayed share."""
    torch.manual_seed(0)
    tensors = [torch.randn(7), torch.randn(2, 3)]
    start = [tensor.clone() for tensor in tensors]
    ema, history, decays = Ema(tensors), [], [0.2, 0.5, 0.9, 0.0, 0.99]
    for decay in decays:
        for tensor in tensors:
            tensor.add_(torch.randn_like(tensor))
        history.append([tensor.clone() for tensor in tensors])
        ema.update(decay)
    for number in range(len(tensors)):
        expected = start[number] * math.prod(decays)
        for step, decay in enumerate(decays):
            expected = expected + history[step][number] * (1 - decay) * math.prod(decays[step + 1 :])
        torch.testing.assert_close(ema.averages[number], expected, rtol=1e-5, atol=1e-6)


def seed_by_hand(settings: Any) -> int:
    """Return the seed of a run's draws, as training.order.run_key defines it."""
    inputs = {"draws": 2, "key": settings.key, "stage": settings.stage}
    key = hashlib.sha256(json.dumps(inputs, separators=(",", ":")).encode()).hexdigest()
    return int(hashlib.sha256(f"{key}\x1f{settings.seed}".encode()).hexdigest()[:16], 16)


def by_hand(lake: str, settings: Any, steps: int) -> tuple[Tensors, Tensors]:
    """Train by the run's definition, one sample at a time; return weights and averages after `steps` updates."""
    seed = seed_by_hand(settings)
    bundle = models.load_bundle(f"{lake}/models/base")
    unet, schedule, optimizer = bundle.unet, Schedule.scaled_linear(), settings.optimizer
    version = Lake(lake).version("latents")
    table = version.read(["latent", "token_ids"])
    empty = tokenize(bundle.tokenizer, [""])
    trained = dict(models.trainable_parameters(unet, settings.trainable))
    ema = {name: p.detach().clone() for name, p in trained.items()}
    first = {name: torch.zeros_like(p) for name, p in trained.items()}
    second = {name: torch.zeros_like(p) for name, p in trained.items()}
    order, rows = open_data(resolve(settings, lake))
    assert rows[0].rows == 180
    for n in range(steps):
        batch = order.batch(n)
        unet.zero_grad()
        for position, row in zip(batch.position.tolist(), batch.row.tolist(), strict=True):
            key = torch.tensor([position])
            latent = np.frombuffer(table["latent"][row].as_py(), dtype="<f2").astype(np.float32).reshape(1, *SHAPE)
            ids = torch.tensor([table["token_ids"][row].as_py()])
            if float(noise.keyed_uniform(seed, key, noise.CAPTION_DROP)) < settings.caption_drop:
                ids = empty
            eps = noise.keyed_normal(seed, key, noise.NOISE, SHAPE)
            t = noise.keyed_timesteps(seed, key, 1000)
            noisy = schedule.signal[t] * torch.from_numpy(latent) + schedule.noise[t] * eps
            with torch.no_grad():
                context = encode_text(bundle.text_encoder, ids, 1)
            predicted = unet(noisy, t, encoder_hidden_states=context).sample
            (((predicted - eps) ** 2).mean() / len(batch)).backward()
        lr = optimizer.lr * min(1, (n + 1) / optimizer.warmup_steps)
        decay = min(optimizer.ema_decay, (2 + n) / (11 + n))
        with torch.no_grad():
            for name, p in trained.items():
                g = p.grad
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                m, v = first[name] / (1 - 0.9 ** (n + 1)), second[name] / (1 - 0.999 ** (n + 1))
                p.mul_(1 - lr * optimizer.weight_decay).sub_(lr * m / (v.sqrt() + optimizer.eps))
                ema[name] = decay * ema[name] + (1 - decay) * p
    return {name: p.detach() for name, p in unet.named_parameters()}, ema


@pytest.mark.parametrize("trainable", ["kv", "all"])
def test_three_updates_are_what_the_definition_says(lake: str, trainable: str) -> None:
    # A large eps keeps AdamW smooth: with 1e-8 a gradient of rounding noise alone moves its weight by lr.
    settings = config(
        lake,
        trainable=trainable,
        steps=3,
        optimizer={"lr": 1e-3, "warmup_steps": 2, "ema_decay": 0.9, "eps": 1e-3, "weight_decay": 0.1},
    )
    expected, averages = by_hand(lake, settings, 3)
    found = run_local(settings, lake, reporter=Recorder())
    base = dict(models.load_bundle(f"{lake}/models/base").unet.named_parameters())
    moved = max(float((expected[name] - base[name].detach()).abs().max()) for name in expected)
    assert moved > 1e-4
    assert_close(weights(found), expected, 1e-6)
    assert_close(weights(found, checkpoints.EMA), averages, 1e-6)


def test_keys_and_values_alone_are_trained_and_get_gradients(lake: str) -> None:
    settings = config(lake, trainable="kv", steps=2)
    found = run_local(settings, lake, reporter=Recorder())
    base = models.load_bundle(f"{lake}/models/base").unet.state_dict()
    after = weights(found)
    changed = {name for name in base if not torch.equal(base[name], after[name])}
    expected = {name for name in base if ".attn2.to_k." in name or ".attn2.to_v." in name}
    assert changed == expected == weights(found, checkpoints.EMA).keys()
    run = resolve(settings, lake)
    trainer = Trainer(run, DiffusionTask(run.config, load_models(run), CPU), device=CPU)
    order, rows = open_data(run)
    trainer.update(read(order, rows, 0))
    assert {name for name, p in trainer.task.module.named_parameters() if p.grad is not None} == expected


def read(order: Any, rows: Any, step: int) -> Any:
    from altdiffusion.training.data.loader import Loader

    loader = Loader(order, rows, start=step, stop=step + 1)
    samples = next(iter(loader))
    loader.close()
    return samples


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_micro_batches_change_rounding_only(lake: str, micro_batch: int) -> None:
    settings = config(lake, steps=4, optimizer={"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4})
    one = run_local(settings, lake, reporter=Recorder())
    other = run_local(replace(settings, run="other", micro_batch=micro_batch), lake, reporter=Recorder())
    assert_close(weights(one), weights(other), 2e-6)
    assert one.state()["metrics"]["train/loss"] == pytest.approx(other.state()["metrics"]["train/loss"], rel=1e-5)


def test_two_workers_equal_one(lake: str, tmp_path: Path) -> None:
    settings = config(lake, steps=6, micro_batch=2, optimizer={"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4})
    one = run_local(settings, lake, reporter=Recorder())
    two_settings = replace(settings, run="two", workers=replace(settings.workers, count=2))
    train_by_two(lake, tmp_path / "store", two_settings)
    two = checkpoints.open_step(lake, "two", 6)
    assert_close(weights(one), weights(two), 2e-6)
    assert_close(weights(one, checkpoints.EMA), weights(two, checkpoints.EMA), 2e-6)
    assert one.state()["metrics"]["train/loss"] == pytest.approx(two.state()["metrics"]["train/loss"], rel=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_in_one_buffer_are_those_of_autograd(lake: str, channels_last: bool) -> None:
    """The way of several workers and of CUDA graphs, with one: the same weights, in either layout."""
    ends = []
    for one_buffer in (False, True):
        run = resolve(config(lake, compute={"channels_last": channels_last}), lake)
        trainer = Trainer(run, DiffusionTask(run.config, load_models(run), CPU), device=CPU)
        if one_buffer:
            trainer._gradients = SummedGradients(trainer.parameters)
        order, rows = open_data(run)
        for step in range(3):
            trainer.update(read(order, rows, step))
        for parameter in trainer.parameters:
            assert parameter.grad is not None and parameter.grad.stride() == parameter.stride()
        ends.append({name: tensor.clone() for name, tensor in trainer.task.weights().items()})
    assert_close(ends[0], ends[1], 1e-6)


def test_caption_drop_is_keyed_by_the_sample(lake: str) -> None:
    settings = config(lake, steps=1, global_batch=64, micro_batch=64, caption_drop=0.5)
    run = resolve(settings, lake)
    trainer = Trainer(run, DiffusionTask(run.config, load_models(run), CPU), device=CPU)
    order, rows = open_data(run)
    samples = read(order, rows, 0)
    drop = noise.keyed_uniform(seed_by_hand(settings), samples.positions, noise.CAPTION_DROP) < 0.5
    assert 15 < int(drop.sum()) < 49
    ids = torch.where(drop.unsqueeze(1), tokenize(load_models(run).tokenizer, [""]), samples["token_ids"].long())
    undropped = DiffusionTask(replace(settings, caption_drop=0.0), load_models(run), CPU)
    assert torch.equal(
        trainer.task.loss(samples), undropped.loss(replace(samples, tensors={**samples.tensors, "token_ids": ids}))
    )
    assert not torch.equal(trainer.task.loss(samples), undropped.loss(samples))


def test_a_step_that_is_not_finite_is_skipped_and_counted(lake: str) -> None:
    write_latents(lake, "spoiled", 180, spoiled=[17])
    settings = config(lake, datasets=[{"name": "spoiled"}], steps=22, checkpoint_every=100, log_every=1)
    order, _ = open_data(resolve(settings, lake))
    bad = [n for n in range(22) if 17 in order.batch(n).row]
    assert len(bad) == 1
    recorder = Recorder()
    found = run_local(settings, lake, reporter=recorder)
    assert [report.skipped_steps for report in recorder.reports] == [int(n >= bad[0]) for n in range(22)]
    assert math.isnan(recorder.reports[bad[0]].loss)
    assert found.state()["updates"] == 21
    assert found.state()["skipped"] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in weights(found).values())


def test_a_skipped_step_changes_nothing(lake: str) -> None:
    run = resolve(config(lake), lake)
    trainer = Trainer(run, DiffusionTask(run.config, load_models(run), CPU), device=CPU)
    order, rows = open_data(run)
    trainer.update(read(order, rows, 0))
    before = {file: {k: v.clone() for k, v in named.items()} for file, named in trainer.tensors().items()}
    samples = read(order, rows, 1)
    samples["latents"][3] = math.inf
    assert bool(trainer.update(samples).isnan())
    assert trainer.counters.step == 2
    assert trainer.counters.updates == 1
    for file, named in trainer.tensors().items():
        assert all(torch.equal(tensor, before[file][name]) for name, tensor in named.items())


def test_an_update_that_is_decided_on_the_device_equals_one_that_is_decided_here(lake: str) -> None:
    """The way of a GPU, where the host never waits, run on the CPU: averages and counters lag, nothing else differs."""
    ends = []
    for on_device in (False, True):
        run = resolve(config(lake), lake)
        trainer = Trainer(run, DiffusionTask(run.config, load_models(run), CPU), device=CPU)
        trainer.on_device = on_device
        order, rows = open_data(run)
        for step in range(6):
            samples = read(order, rows, step)
            if step in (1, 2, 4):
                samples["latents"][3] = math.inf
            assert bool(trainer.update(samples).isnan()) == (step in (1, 2, 4))
            assert trainer.counters.updates == [1, 1, 1, 2, 2, 3][step] - (on_device and step in (0, 3, 5))
        tensors = trainer.tensors()
        assert (trainer.counters.updates, trainer.counters.skipped, trainer.counters.bad_in_a_row) == (3, 3, 0)
        ends.append((tensors, [float(state["step"]) for state in trainer.optimizer.state.values()]))
    (one, steps), (other, other_steps) = ends
    assert steps == other_steps == [3.0] * len(steps)
    for file, named in one.items():
        assert all(torch.equal(tensor, other[file][name]) for name, tensor in named.items()), file


def test_steps_that_stay_not_finite_end_the_run(lake: str) -> None:
    write_latents(lake, "spoiled", 180, spoiled=list(range(180)))
    settings = config(lake, datasets=[{"name": "spoiled"}], max_bad_steps=3, checkpoint_every=1)
    with pytest.raises(AltDiffusionError, match="step 3: loss or gradient was not finite in 3 steps in a row"):
        run_local(settings, lake, reporter=Recorder())


def test_reports_hold_what_a_person_needs(lake: str) -> None:
    recorder = Recorder()
    run_local(config(lake), lake, reporter=recorder)
    last = recorder.reports[-1]
    assert [report.step for report in recorder.reports] == [4, 8, 12]
    assert (last.samples_seen, last.epochs, last.lr, last.skipped_steps) == (96, pytest.approx(96 / 180), 1e-3, 0)
    assert last.samples_per_second == last.samples_per_second_per_worker > 0
    assert 0 < last.mfu < 1
    assert 10 << 20 < last.memory_bytes < 64 << 30
    assert 0 <= last.data_wait < 1
    assert last.seconds_left == 0
    assert "12/12 steps" in last.line("train align")
    assert "images/s" in last.line("train align")
    assert "MFU" in last.line("train align")
    assert {"train/mfu", "train/memory_gib", "train/images_per_second_per_worker"} <= last.metrics().keys()


def test_bf16_stays_near_fp32(lake: str) -> None:
    full = run_local(config(lake, steps=4), lake, reporter=Recorder())
    half = run_local(config(lake, steps=4, run="half", precision="bf16"), lake, reporter=Recorder())
    losses = [found.state()["metrics"]["train/loss"] for found in (full, half)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in weights(half).values())


def test_cached_text_is_exact_and_encoded_once(lake: str) -> None:
    bundle = models.load_bundle(f"{lake}/models/base")
    ids = tokenize(bundle.tokenizer, ["cat", "dog", "cat", "a dog", "cat"])

    def encode(token_ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return encode_text(bundle.text_encoder, token_ids, 1)

    alone = torch.cat([encode(row.unsqueeze(0)) for row in ids])
    cache = TextCache(encode, 1 << 20)
    assert torch.equal(cache(ids), alone)
    assert torch.equal(cache(ids.flip(0)), alone.flip(0))
    assert cache.misses == 3
    tight = TextCache(encode, alone[0].nbytes)  # room for one
    assert torch.equal(tight(ids), alone)
    assert tight.misses == 3
    torch.testing.assert_close(alone, encode(ids), rtol=1e-5, atol=1e-6)


def test_training_with_cached_text_changes_rounding_only(lake: str) -> None:
    settings = config(lake, steps=3, optimizer={"lr": 1e-3, "warmup_steps": 2, "eps": 1e-4})
    plain = run_local(settings, lake, reporter=Recorder())
    cached_settings = replace(settings, run="cached", workers=replace(settings.workers, text_cache_mb=1))
    cached = run_local(cached_settings, lake, reporter=Recorder())
    assert_close(weights(plain), weights(cached), 2e-6)


def test_a_mixture_of_datasets_trains(lake: str) -> None:
    write_latents(lake, "more", 60, seed=9)
    settings = config(lake, steps=4, datasets=[{"name": "latents", "weight": 3}, {"name": "more", "weight": 1}])
    found = run_local(settings, lake, reporter=Recorder())
    assert [ref.partition("@")[0] for ref in found.parents] == ["dataset:latents", "dataset:more", "model:base"]
    order, _ = open_data(resolve(settings, lake))
    assert order.shares == (3, 1)
