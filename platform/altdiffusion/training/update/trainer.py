"""Optimizer, averages and counters of one rank, and one update of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from altdiffusion.storage import files
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.tasks import Task
from altdiffusion.training.update.gradients import Gradients, OwnGradients, SummedGradients
from altdiffusion.training.update.optimizers import Ema, make_optimizer
from altdiffusion.training.update.sharded_state import ShardedGradients, Shards
from altdiffusion.training.weights import check_shapes


class Flag:
    """A boolean on a device that is being copied to the host."""

    def __init__(self, on_device: Tensor) -> None:
        self._event = None
        self._host = on_device
        if on_device.is_cuda:
            self._host = torch.empty((), dtype=on_device.dtype, pin_memory=True)
            self._host.copy_(on_device, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def value(self) -> bool:
        """Return the boolean; wait for the copy where it has not ended yet."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._host)


@dataclass(kw_only=True)
class Counters:
    """Numbers that a checkpoint holds in addition to tensors."""

    step: int = 0
    """Batches consumed: the next batch is the one with this number."""
    updates: int = 0
    """Updates of the weights: `step` minus the skipped ones."""
    skipped: int = 0
    bad_in_a_row: int = 0


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """Return min(1, limit / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ scales gradients: float32 scalar."""
    return (limit / (norm + 1e-6)).clamp(max=1.0)


class Trainer:
    """Optimizer, averages and counters of one rank, and one update of them.

    Args:
        run: the run that is trained.
        task: its networks and its loss, on `device`.
        world: number of ranks; with more than one, a process group is set up.
    """

    def __init__(self, run: ResolvedRun, task: Task, *, device: torch.device, world: int = 1) -> None:
        config = run.config
        self.run, self.config, self.task, self.device, self.world = run, config, task, device, world
        self.counters = Counters()
        self.names = [name for name, _ in task.trained]
        trained = [parameter for _, parameter in task.trained]
        self._shards = Shards(trained) if any(isinstance(parameter, DTensor) for parameter in trained) else None
        self.parameters = self._shards.local if self._shards is not None else trained
        """What the optimizer moves: the trained parameters, or this rank's rows of them."""
        self.ema = Ema(self.parameters)
        self.optimizer = make_optimizer(config.optimizer, self.parameters)
        self._gradients: Gradients
        if self._shards is not None:
            self._gradients = ShardedGradients(task.module, self._shards, trained)
        elif world > 1 or config.compute.cuda_graphs:
            self._gradients = SummedGradients(self.parameters)
        else:
            self._gradients = OwnGradients(self.parameters)
        self.grad_norm: Tensor = torch.tensor(math.nan)
        """L2 norm over all that is trained, of the last update, before it is limited; on the device."""
        self.on_device = device.type != "cpu" and getattr(self.optimizer, "_step_supports_amp_scaling", False)
        """Whether the optimizer itself skips an update that is not finite."""
        self._bad: Flag | None = None  # of an update that is not settled yet

    def update(self, samples: Samples) -> Tensor:
        """Update the weights with this rank's samples of a global batch.

        Nothing here waits for a GPU: whether the gradient is finite is decided there (see `settle`).

        Returns:
            Mean loss of this rank's samples (float32 scalar on the device). NaN if a loss or gradient of any rank is
            not finite: then nothing changes but the counters.
        """
        loss = self._backward(samples)
        self.settle()  # the averages of the update before are taken before this one moves the weights
        self.grad_norm = self._gradients.norm()
        bad = ~torch.isfinite(self.grad_norm)
        if self.config.optimizer.max_grad_norm is not None:
            self._gradients.scale(clip_factor(self.grad_norm, self.config.optimizer.max_grad_norm))
        self.counters.step += 1
        self._set_lr(self.config.optimizer.lr_at(self.counters.step - 1))
        if self.on_device:
            self.optimizer.found_inf = bad.to(torch.float32)  # the fused kernels change nothing where it is 1
            self.optimizer.step()
            self._bad = Flag(bad)
        else:
            self._bad = Flag(bad)
            if not self._bad.value():
                self.optimizer.step()
            self.settle()
        return torch.where(bad, math.nan, loss)

    def settle(self) -> None:
        """Bring counters and averages up to the last update.

        On a GPU they lag behind by one: the host learns whether an update was skipped while the GPU is busy with the
        next one, and never waits for it. On the CPU there is nothing to wait for, and they never lag.
        """
        if self._bad is None:
            return
        counters, bad = self.counters, self._bad.value()
        self._bad = None
        if bad:
            counters.skipped += 1
            counters.bad_in_a_row += 1
            return
        counters.updates += 1
        counters.bad_in_a_row = 0
        self.ema.update(self.config.optimizer.ema_decay_at(counters.updates))

    def _backward(self, samples: Samples) -> Tensor:
        """Sum the gradients of all micro-batches and ranks; return this rank's mean loss."""
        total = torch.zeros((), device=self.device)
        share = 1.0 / (self.config.accumulation_of(self.world) * self.world)
        self._gradients.zero()
        pieces = list(samples.micro(self.config.micro_batch))
        for number, piece in enumerate(pieces):
            loss = self.task.loss(piece)
            if number + 1 == len(pieces):
                self._gradients.last()
            (loss * share).backward()
            total += loss.detach()
        self._gradients.wait()
        return total / len(pieces)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the network the averages in place of its weights within the block, bit for bit and back."""
        self.settle()
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.ema.averages, strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint, by file and name; sharded ones can be gathered (`full_tensor`)."""
        self.settle()
        whole = self._shards.whole if self._shards is not None else lambda number, tensor: tensor
        moments = {}
        for number, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            for key, tensor in self.optimizer.state[parameter].items():
                if key != "step":  # which is `updates`
                    moments[f"{key}/{name}"] = whole(number, tensor)
        averages = enumerate(zip(self.names, self.ema.averages, strict=True))
        return {
            self.task.weights_file: self.task.weights(),
            checkpoints.EMA: {name: whole(number, average) for number, (name, average) in averages},
            checkpoints.OPTIMIZER: moments,
        }

    def load(self, found: Checkpoint) -> None:
        """Load averages, optimizer and counters; the network's weights were loaded with the task."""
        state = found.state()
        for key in Counters.__dataclass_fields__:
            setattr(self.counters, key, int(state[key]))
        mine = self.tensors()
        numbers = {name: number for number, name in enumerate(self.names)}
        for file in (checkpoints.EMA, checkpoints.OPTIMIZER):
            tensors = found.tensors(file)
            check_shapes(mine[file], tensors, f"checkpoint file {files.join(found.folder, file)}")
            for key, tensor in tensors.items():
                number = numbers[key.split("/", 1)[-1]]
                if self._shards is not None:
                    tensor = self._shards.rows(number, tensor.to(self.device))
                if file == checkpoints.EMA:
                    self.ema.averages[number].copy_(tensor)
                else:
                    self.optimizer.state[self.parameters[number]][key.split("/", 1)[0]].copy_(tensor)
        for parameter in self.parameters:  # AdamW counts its updates in a tensor of each parameter
            self.optimizer.state[parameter]["step"].fill_(float(self.counters.updates))

    def state(self, loss: float | None) -> dict[str, Any]:
        """Return the content of state.json.

        Args:
            loss: the mean loss of the last step over all ranks, or None where it is not finite.
        """
        self.settle()
        counters = self.counters
        return {
            "format": checkpoints.FORMAT,
            "step": counters.step,
            "updates": counters.updates,
            "skipped": counters.skipped,
            "bad_in_a_row": counters.bad_in_a_row,
            "samples_seen": counters.step * self.config.global_batch,
            "stage": self.config.stage,
            "trained": self.config.trainable,
            "config": dict(self.run.meaning),
            "config_fingerprint": self.run.fingerprint,
            "parents": [str(ref) for ref in self.run.parents],
            **self.run.key.record(),
            "metrics": {} if loss is None else {"train/loss": loss},
        }
