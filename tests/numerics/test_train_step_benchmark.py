"""The benchmark of a training step: it runs where Ray is not installed, and its loops do the same work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import train_step, training
from benchmarks.train_profile import NETWORKS, print_profile
from benchmarks.training import Case

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SIZE = training.Size(
    name="tiny",
    unet=training.models.unet_config_demo()
    | {
        "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "norm_num_groups": 4,
        "attention_head_dim": (1, 2), "cross_attention_dim": 16,
    },
    text=training.models.text_config_demo(1000)
    | {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "project_dim": 16,
    },
    tokens=32,
    sides={256: 4},
    precision="fp32",
)  # fmt: skip


def test_it_runs_without_ray() -> None:
    code = (
        "import sys\n"
        "sys.modules['ray'] = None\n"  # an import of it would raise
        "import benchmarks.train_step\n"
        "from tests.numerics.test_train_step_benchmark import SIZE, CPU, Case, training\n"
        "case = Case(trainable='kv', resolution=256, batch=2)\n"
        "for make in (training.ours, training.plain, training.bare):\n"
        "    assert make(SIZE, case, CPU).step().isfinite()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('ray', 'mlflow') and sys.modules[name]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": "platform:."},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("trainable", ["kv", "all"])
def test_every_loop_trains_the_same_parameters(trainable: training.models.Trains) -> None:
    case = Case(trainable=trainable, resolution=256, batch=2)
    for name, make in train_step.variants(CPU, SIZE, case, compiled=False).items():
        contender = make(SIZE, case, CPU)
        owner = contender.keep[0]
        unet = owner.task.module if hasattr(owner, "task") else owner
        before = {key: p.detach().clone() for key, p in unet.named_parameters()}
        for _ in range(3):
            loss = contender.step()
        assert loss.isfinite(), name
        if name == "bare":
            continue  # its learning rate is 0: the arithmetic is the same
        moved = {key for key, p in unet.named_parameters() if not torch.equal(p, before[key])}
        trained = {key for key, p in unet.named_parameters() if p.requires_grad}
        assert moved <= trained, name
        assert len(moved) > 0.7 * len(trained), name  # at the start of a warm-up a norm's weight of 1 does not move


def test_ratios_are_of_one_turn() -> None:
    assert train_step.ratio([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == 2.0


def test_a_profile_divides_the_step_twice(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(trainable="kv", resolution=256, batch=2)
    print_profile(training.ours(SIZE, case, CPU), CPU)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("a step under the profiler: ")
    shares = {line[:45].strip(): float(line[45:].strip().rstrip("%")) for line in lines}
    by_network = [shares.pop(name) for name in (*NETWORKS, "backward, and the update")]
    assert min(by_network) > 0 and sum(by_network) == pytest.approx(100, abs=0.2)
    assert sum(shares.values()) == pytest.approx(100, abs=0.6) and shares["matrix products (linear layers)"] > 1
