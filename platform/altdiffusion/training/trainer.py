"""Optimizer, averages and counters of one rank, and one update of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altdiffusion.config import semantic
from altdiffusion.storage import files
from altdiffusion.training import checkpoint as checkpoints
from altdiffusion.training.checkpoint import Checkpoint
from altdiffusion.training.data import Samples
from altdiffusion.training.ema import Ema
from altdiffusion.training.gradients import SummedGradients
from altdiffusion.training.resolve import ResolvedRun, check_shapes
from altdiffusion.training.tasks import Task


@dataclass(kw_only=True)
class Counters:
    """Numbers that a checkpoint carries beside tensors."""

    step: int = 0
    """Batches consumed: the next batch is the one with this number."""
    updates: int = 0
    """Of the weights; less than `step` by the skipped ones."""
    skipped: int = 0
    bad_in_a_row: int = 0


class Trainer:
    """Optimizer, averages and counters of one rank, and one update of them.

    Args:
        run: what is trained.
        task: its networks and its loss, on `device`.
        world: number of ranks; with more than one, a process group is set up.
    """

    def __init__(self, run: ResolvedRun, task: Task, *, device: torch.device, world: int = 1) -> None:
        config = run.config
        self.run, self.config, self.task, self.device, self.world = run, config, task, device, world
        self.counters = Counters()
        self.names = [name for name, _ in task.trained]
        self.parameters = [parameter for _, parameter in task.trained]
        self.ema = Ema(self.parameters)
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(0.0) if device.type == "cuda" else 0.0,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for parameter in self.parameters:  # from the start, so that a checkpoint always holds all of it
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
        self._gradients = SummedGradients(self.parameters) if world > 1 else None
        self.grad_norm = math.nan

    def update(self, samples: Samples) -> Tensor | None:
        """One update with this rank's samples of a global batch.

        Returns:
            Mean loss of this rank's samples (float32 scalar on the device), or None if a loss or gradient of any
            rank is not finite: then nothing changes but the counters.
        """
        total = torch.zeros((), device=self.device)
        share = 1.0 / (self.config.accumulation_of(self.world) * self.world)
        if self._gradients is not None:
            self._gradients.zero()
        else:
            self.optimizer.zero_grad(set_to_none=True)
        pieces = list(samples.micro(self.config.micro_batch))
        for number, piece in enumerate(pieces):
            loss = self.task.loss(piece)
            if self._gradients is not None and number + 1 == len(pieces):
                self._gradients.last()
            (loss * share).backward()
            total += loss.detach()
        if self._gradients is not None:
            self._gradients.wait()
        counters = self.counters
        counters.step += 1
        if not self._finite():
            counters.skipped += 1
            counters.bad_in_a_row += 1
            return None
        counters.updates += 1
        counters.bad_in_a_row = 0
        self._set_lr(self.config.optimizer.lr_at(counters.step - 1))
        self.optimizer.step()
        self.ema.update(self.config.optimizer.ema_decay_at(counters.updates))
        return total / len(pieces)

    def _finite(self) -> bool:
        """Whether the gradient's norm is finite; the gradient is the sum over ranks, so all ranks answer the same."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        self.grad_norm = float(norm)
        return math.isfinite(self.grad_norm)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint, by file and name."""
        moments = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            state = self.optimizer.state[parameter]
            moments[f"exp_avg/{name}"] = state["exp_avg"]
            moments[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
        return {
            self.task.weights_file: dict(self.task.module.state_dict()),
            checkpoints.EMA: dict(zip(self.names, self.ema.averages, strict=True)),
            checkpoints.OPTIMIZER: moments,
        }

    def load(self, found: Checkpoint) -> None:
        """Takes averages, optimizer and counters over; the network's weights were loaded with the task."""
        state = found.state()
        for key in Counters.__dataclass_fields__:
            setattr(self.counters, key, int(state[key]))
        mine = self.tensors()
        for name in (checkpoints.EMA, checkpoints.OPTIMIZER):
            tensors = found.tensors(name)
            check_shapes(mine[name], tensors, f"checkpoint file {files.join(found.folder, name)}")
            for key, tensor in tensors.items():
                mine[name][key].detach().copy_(tensor)
        for parameter in self.parameters:  # AdamW counts its updates in a tensor of each parameter
            self.optimizer.state[parameter]["step"].fill_(float(self.counters.updates))

    def state(self, loss: float | None) -> dict[str, Any]:
        """The content of state.json."""
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
            "config": semantic(self.config),
            "config_fingerprint": self.run.fingerprint,
            "parents": [str(ref) for ref in self.run.parents],
            "metrics": {} if loss is None else {"train/loss": loss},
        }
