"""A learning rate that falls, gradients that are limited, noise with an offset; and going on with another rate."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from altdiffusion.config import from_dict
from altdiffusion.diffusion import noise
from altdiffusion.diffusion.text_encoder import encode_text
from altdiffusion.errors import AltDiffusionError, Resumable
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import OptimizerConfig
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.loop.loop import open_data
from altdiffusion.training.reporting.peak import Peak
from altdiffusion.training.reporting.progress import Progress
from altdiffusion.training.reporting.reporter import LineReporter
from altdiffusion.training.run.continuing import continuation
from altdiffusion.training.run.resolve import resolve
from altdiffusion.training.tasks import DiffusionTask
from altdiffusion.training.update.gradients import OwnGradients
from altdiffusion.training.update.trainer import clip_factor
from altdiffusion.training.weights import load_models
from tests.numerics.test_continuing import tensors
from tests.numerics.test_run_key import own
from tests.training_lake import Recorder, config

FALL = {"lr": 1e-3, "warmup_steps": 3, "ema_decay": 0.9, "lr_scheduler": "cosine"}


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_rate_after_the_warm_up_is_that_of_diffusers(kind: Any) -> None:
    from diffusers.optimization import get_scheduler

    ends = {} if kind == "constant" else {"decay_from": 5, "decay_until": 40}
    ours = OptimizerConfig(lr=0.25, warmup_steps=5, lr_scheduler=kind, **ends)
    peer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.25)
    name = "constant_with_warmup" if kind == "constant" else kind
    theirs = get_scheduler(name, peer, num_warmup_steps=5, num_training_steps=40)
    for step in range(45):
        if step >= 5 and (step < 40 or kind != "cosine"):  # their cosine rises again behind its end
            assert ours.lr_at(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        peer.step()
        theirs.step()
    assert ours.lr_at(44) == (0.25 if kind == "constant" else 0.0)


def test_a_fall_ends_at_its_last_rate_and_may_begin_later() -> None:
    settings = OptimizerConfig(lr=1.0, warmup_steps=2, lr_scheduler="linear", decay_from=10, decay_until=20, lr_end=0.5)
    assert [settings.lr_at(step) for step in (0, 1, 9, 10, 15, 20, 99)] == [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.5]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"lr_scheduler": "constant", "lr_end": 1e-5}, "does not fall"),
        ({"decay_until": 2}, "not after step 3"),
        ({"decay_from": 1}, "before the end of the warm-up"),
        ({"lr_end": 1e-3}, "is not below lr"),
        ({"max_grad_norm": 0}, "max_grad_norm"),
        ({"lr_scheduler": "polynomial"}, "lr_scheduler"),
    ],
)
def test_an_invalid_fall_is_named(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(AltDiffusionError, match=part):
        from_dict(OptimizerConfig, FALL | changes)


def test_a_limited_gradient_is_that_of_torch() -> None:
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.zeros(2, 3))]
    peer = [torch.nn.Parameter(torch.zeros(5)), torch.nn.Parameter(torch.zeros(2, 3))]
    for one, other in zip(mine, peer, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    gradients = OwnGradients(mine)
    for limit in (100.0, 0.3):  # the first leaves them as they are
        norm = gradients.norm()
        gradients.scale(clip_factor(norm, limit))
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(peer, limit))
        for one, other in zip(mine, peer, strict=True):
            assert one.grad is not None and other.grad is not None
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=0)


def test_offset_noise_is_its_formula(lake: str) -> None:
    """Noise plus one number per image and channel enters both the noisy latent and the target."""
    settings = own(lake, run="offset", objective={"noise_offset": 0.5}, caption_drop=0.0)
    run = resolve(settings, lake)
    task = DiffusionTask(run.config, load_models(run, None), torch.device("cpu"), run.key)
    order, rows = open_data(run)
    from altdiffusion.training.data.loader import Loader

    loader = Loader(order, rows, rank=0, world=1, start=0, stop=1, ahead=1, skips=())
    samples = next(iter(loader))
    positions, latents = samples.positions, samples["latents"].float()
    eps = noise.keyed_normal(task.seed, positions, noise.NOISE, latents.shape[1:])
    eps = eps + 0.5 * noise.keyed_normal(task.seed, positions, noise.NOISE_OFFSET, (latents.shape[1], 1, 1))
    t = noise.keyed_timesteps(task.seed, positions, task.schedule.steps)
    with torch.no_grad():
        context = encode_text(task.text_encoder, samples["token_ids"].long(), task.pad_id)
        predicted = task.unet(task.schedule.add_noise(latents, eps, t), t, encoder_hidden_states=context).sample
        expected = (predicted - task.schedule.target(task.prediction, latents, eps, t)).square().mean()
        assert float(task.loss(samples)) == pytest.approx(float(expected), rel=1e-6)
    loader.close()


def test_a_fall_is_part_of_the_run(lake: str) -> None:
    """Resumed equals undisturbed; a limit that is not reached changes nothing; more steps are refused with a remedy
    that works."""
    whole = config(lake, run="whole", optimizer=FALL | {"max_grad_norm": 1e6})
    run_local(whole, lake, reporter=Recorder())
    recorder = Recorder()
    half = config(lake, run="half", optimizer=FALL | {"decay_until": 12}, steps=6, log_every=1)
    run_local(half, lake, reporter=recorder)
    expected = [1e-3 / 3, 2e-3 / 3, 1e-3, *(1e-3 * (1 + math.cos(math.pi * (s - 3) / 9)) / 2 for s in (3, 4, 5))]
    assert [report.lr for report in recorder.reports] == pytest.approx(expected)
    run_local(config(lake, run="half", optimizer=FALL, steps=12), lake, reporter=Recorder())
    assert tensors(lake, "half", 12) == tensors(lake, "whole", 12)
    with pytest.raises(AltDiffusionError, match="the learning rate is 0 from step 12 on"):
        resolve(config(lake, run="half", optimizer=FALL, steps=20), lake)
    more = config(lake, run="half", optimizer=FALL | {"decay_until": 20}, steps=20, continue_as="half-2")
    found = run_local(continuation(more, lake), lake, reporter=Recorder())
    assert (found.run, found.step) == ("half-2", 20)


def test_one_override_goes_on_with_another_rate(lake: str) -> None:
    run_local(own(lake, run="whole", steps=6), lake, reporter=Recorder())
    slow = {"lr": 1e-5, "warmup_steps": 4, "ema_decay": 0.9}
    with pytest.raises(AltDiffusionError, match=r"add train.continue_as=whole-2") as error:
        resolve(own(lake, run="whole", optimizer=slow), lake)
    assert "optimizer.lr (0.001, now 1e-05)" in str(error.value)
    given = own(lake, run="whole", optimizer=slow, continue_as="whole-2", steps=9)
    meant = continuation(given, lake)
    assert (meant.run, meant.continue_from, meant.continue_as) == ("whole-2", "whole@6", None)
    run_local(meant, lake, reporter=Recorder())
    run_local(own(lake, run="whole", steps=9), lake, reporter=Recorder())
    assert continuation(given, lake) == meant, "the same command again is the same run, whatever the other one does"
    assert resolve(meant, lake).fingerprint == resolve(
        own(lake, run="whole-2", optimizer=slow, continue_from="whole@6", steps=9), lake
    ).fingerprint  # fmt: skip
    with pytest.raises(AltDiffusionError, match=r"is not more than the 9 steps.*add train.steps=18"):
        continuation(own(lake, run="whole", optimizer=slow, continue_as="whole-3", steps=9), lake)
    for name, part in (("none", "has no checkpoint"), ("whole-2", "does not continue free")):
        with pytest.raises(AltDiffusionError, match=part):
            continuation(own(lake, run="free", continue_as=name), lake)
    with pytest.raises(AltDiffusionError, match="belongs to a run with another global_batch") as error:
        resolve(own(lake, run="whole", global_batch=16), lake)
    assert "start: {checkpoint: whole}" in str(error.value) and "continue_as" not in str(error.value)


def test_ctrl_c_writes_a_checkpoint_and_a_second_one_ends_at_once(
    lake: str, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    run_local(config(lake, run="whole"), lake, reporter=Recorder())

    class Interrupts(Recorder):
        times = 1

        def progress(self, progress: Progress) -> None:
            super().progress(progress)
            if progress.step == 2:
                for _ in range(self.times):
                    os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    stopped = config(lake, run="stopped", log_every=1, checkpoint_every=12)
    with pytest.raises(Resumable) as error:
        run_local(stopped, lake, reporter=Interrupts())
    assert error.value.status == 130 and "again ends at once" in capfd.readouterr().err
    assert checkpoints.steps(lake, "stopped") in ([2], [3])
    run_local(stopped, lake, reporter=Recorder())
    assert tensors(lake, "stopped", 12) == tensors(lake, "whole", 12)
    twice = Interrupts()
    twice.times = 2
    with pytest.raises(KeyboardInterrupt):
        run_local(own(lake, run="twice", log_every=1, checkpoint_every=12), lake, reporter=twice)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert not (Path(lake) / "checkpoints/twice/step-00000002").exists()


def test_event_files_are_one_curve_over_two_starts(lake: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder()
    settings = {"run": "curve", "log_every": 1, "steps": 4}
    run_local(config(lake, **settings), lake, reporter=LineReporter(config(lake, **settings), None, str(tmp_path)))
    more = config(lake, **settings | {"steps": 6})
    shutil.rmtree(checkpoints.folder_of(lake, "curve", 4))  # killed behind step 3
    run_local(more, lake, reporter=LineReporter(more, None, str(tmp_path)))
    run_local(config(lake, run="whole", log_every=1, steps=6), lake, reporter=recorder)
    events = EventAccumulator(str(tmp_path / "curve"))
    events.Reload()
    points = [(point.step, point.value) for point in events.Scalars("train/loss")]
    assert points == [(report.step, pytest.approx(report.loss, rel=1e-6)) for report in recorder.reports]
    assert {"train/lr", "train/grad_norm"} <= set(events.Tags()["scalars"])


def test_a_line_fits_its_columns_and_keeps_what_matters() -> None:
    progress = Progress(
        step=123_456, steps=330_000, loss=0.1234, grad_norm=1.0, lr=1e-4, samples_per_second=12_345.6,
        samples_per_second_per_worker=192.9, mfu=0.41, peak=Peak(tflops=312.0, name="A100"), memory_bytes=38 << 30,
        data_wait=0.01, epochs=1.5, samples_seen=10**8, skipped_steps=3, seconds_left=123_456.0, checkpoint_stall=0.001,
    )  # fmt: skip
    line = progress.line("train m18-alignment")
    assert len(line) <= 100 and "3 skipped" in line and "12,345.6 images/s" in line
    narrow = progress.line("train m18-alignment", 60)
    assert narrow == "[train m18-alignment] 123456/330000 steps  loss 0.1234  34:17:36 left"
    assert "GiB" in progress.line("train m18-alignment", 1000)
