"""AdamW with 8-bit moments: its data type, its formula, its size; it trains as AdamW does and resumes exactly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from altdiffusion.training.checkpoints.format import OPTIMIZER
from altdiffusion.training.config import OptimizerConfig
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.update import optimizers
from altdiffusion.training.update.optimizers import (
    BLOCK,
    SMALLEST,
    AdamW8bit,
    Codec,
    dynamic_values,
    make_optimizer,
    state_bytes,
)
from tests.training_lake import Recorder, bundle, config, replace

CPU = torch.device("cpu")


def test_the_data_type_is_the_papers() -> None:
    for signed in (True, False):
        values = dynamic_values(signed).tolist()
        assert len(values) == len(set(values)) == 256
        assert values == sorted(values)
        assert values[-1] == 1.0 and 0.0 in values
    signed_values = dynamic_values(True)
    assert torch.equal(signed_values[:-1], -signed_values[:-1].flip(0))  # all but 1 have their opposite
    # no zero before the one, all six bits behind it: 64 parts of 0.1 .. 1; two zeros: 16 parts of 0.001 .. 0.01
    values = set(signed_values.tolist())
    for exponent, bits in ((0, 6), (2, 4), (6, 0)):
        for part in (0, 2**bits - 1):
            wanted = (0.1 + 0.9 * (part + 0.5) / 2**bits) * 10.0**-exponent
            assert any(math.isclose(value, wanted, rel_tol=1e-6) for value in values)
    unsigned = dynamic_values(False)
    assert int(((unsigned > 0.1) & (unsigned < 1)).sum()) == 128  # the sign's bit doubles the parts


@pytest.mark.parametrize("signed", [True, False])
def test_each_value_becomes_the_nearest_of_its_block(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3 * BLOCK + 17, generator=generator) * torch.logspace(-9, 2, 3 * BLOCK + 17)
    values = values if signed else values.abs()
    codec, levels = Codec(signed, CPU), dynamic_values(signed)
    codes, scales = codec.empty(values.numel())
    assert torch.equal(codec.decode(codes, scales), torch.zeros_like(values))
    codec.encode(values, codes, scales)
    for block in range(4):
        part = slice(block * BLOCK, min((block + 1) * BLOCK, values.numel()))
        scale = values[part].abs().max()
        assert scales[block] == scale
        candidates = levels * scale
        if not signed:
            candidates = candidates[1:]  # never 0 for what is not 0
        nearest = (values[part, None] - candidates).abs().min(dim=1).values
        found = (codec.decode(codes, scales)[part] - values[part]).abs()
        torch.testing.assert_close(found, nearest, rtol=1e-4, atol=1e-7 * float(scale))
    again, scales_again = codec.empty(values.numel())
    codec.encode(codec.decode(codes, scales), again, scales_again)
    assert torch.equal(again, codes)  # a second time changes nothing (but a scale whose value was negative: no -1)


def test_one_update_is_the_formula() -> None:
    """Before the first rounding there is no difference from AdamW; small weights never differ."""
    torch.manual_seed(0)
    settings = OptimizerConfig(kind="adamw_8bit", weight_decay=0.1)
    for count, updates in ((SMALLEST, 1), (SMALLEST - 1, 5)):
        ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, count)) for _ in range(2))
        eight = make_optimizer(settings, [ours])
        plain = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1, foreach=False)
        eight.param_groups[0]["lr"] = 1e-2
        for _ in range(updates):
            ours.grad = torch.randn(count)
            theirs.grad = ours.grad.clone()
            eight.step()
            plain.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_an_update_stays_bounded_where_a_gradient_ends() -> None:
    """v far below its block's largest would be rounded to 0, and m / eps would throw the weight away."""
    weight = torch.nn.Parameter(torch.zeros(SMALLEST))
    optimizer = AdamW8bit([weight], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 1e-3
    weight.grad = torch.full((SMALLEST,), 1e-4)
    weight.grad[0] = 1.0  # its v is 1e8 times the others'
    for _ in range(20):
        optimizer.step()
        weight.grad = torch.zeros(SMALLEST)
        weight.grad[0] = 1.0
    assert float(weight.detach().abs().max()) < 20 * 1e-3 * 1.1


def test_it_trains_as_adamw_does(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same small run with both, nearly all weights of the small network in 8 bits: the losses stay within 1 % of
    what was learned (measured: 0.03 %)."""
    monkeypatch.setattr(optimizers, "SMALLEST", 64)
    counts = [parameter.numel() for parameter in bundle().unet.parameters()]
    assert sum(count for count in counts if count >= 64) > 0.95 * sum(counts)
    losses = {}
    for kind in ("adamw", "adamw_8bit"):
        recorder = Recorder()
        settings = config(
            lake, run=kind.replace("_", "-"), steps=60, checkpoint_every=60, log_every=10, caption_drop=0.0,
            optimizer={"kind": kind, "lr": 2e-3, "warmup_steps": 4, "ema_decay": 0.9},
        )  # fmt: skip
        run_local(settings, lake, reporter=recorder)
        losses[kind] = [report.loss for report in recorder.reports]
    learned = losses["adamw"][0] - losses["adamw"][-1]
    assert learned > 0.05
    assert max(abs(a - b) for a, b in zip(losses["adamw"], losses["adamw_8bit"], strict=True)) > 1e-6  # it did round
    for plain, eight in zip(losses["adamw"], losses["adamw_8bit"], strict=True):
        assert abs(plain - eight) < 0.01 * learned


def test_the_state_is_a_quarter() -> None:
    weights = [torch.nn.Parameter(torch.zeros(640, 320)), torch.nn.Parameter(torch.zeros(320))]
    sizes = {}
    for kind in ("adamw", "adamw_8bit"):
        settings = OptimizerConfig(kind=kind)  # type: ignore[arg-type]
        optimizer = make_optimizer(settings, weights)
        sizes[kind] = sum(
            tensor.nbytes for state in optimizer.state.values() for key, tensor in state.items() if key != "step"
        )
        assert sizes[kind] == state_bytes(settings, [weight.numel() for weight in weights])
    assert 0.25 < sizes["adamw_8bit"] / sizes["adamw"] < 0.26


def test_resume_is_bit_exact(lake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "SMALLEST", 64)
    kind = {"kind": "adamw_8bit", "lr": 1e-3, "warmup_steps": 4, "ema_decay": 0.9}
    whole = run_local(config(lake, run="whole", optimizer=kind), lake, reporter=Recorder())
    stopped = config(lake, run="stopped", optimizer=kind)
    run_local(replace(stopped, steps=7), lake, reporter=Recorder())
    again = run_local(stopped, lake, reporter=Recorder())
    for name in ("unet.safetensors", "ema.safetensors", OPTIMIZER):
        one, other = whole.tensors(name), again.tensors(name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(tensor.dtype == torch.uint8 for tensor in whole.tensors(OPTIMIZER).values())
    assert Path(whole.folder) != Path(again.folder)


@pytest.mark.parametrize("trainable", ["kv", "all"])
def test_gradient_checkpointing_changes_no_bit(lake: str, trainable: str) -> None:
    found = {}
    for name, switch in (("plain", False), ("checkpointing", True)):
        settings = config(
            lake, run=name, steps=4, checkpoint_every=4, log_every=1, trainable=trainable,
            compute={"gradient_checkpointing": switch},
        )  # fmt: skip
        recorder = Recorder()
        checkpoint = run_local(settings, lake, reporter=recorder)
        found[name] = [report.loss for report in recorder.reports], checkpoint.tensors("unet.safetensors")
    assert found["plain"][0] == found["checkpointing"][0]
    assert all(torch.equal(tensor, found["checkpointing"][1][key]) for key, tensor in found["plain"][1].items())
