"""The distillation stage: a multilingual student learns an English teacher's vectors of the same caption.

Loss of a sample, with index s for the student on the translation and t for the teacher on the English caption:

    mean((feature_s - eos_t)^2) + token_weight * term(context_s, context_t)

The first part is the published one (Carlsson et al., LREC 2022; Chen et al., arXiv 2211.06679): CLS vector against EOS
vector, un-normalised; the teacher's pooled vector or its projection, as `distillation.teacher_output` selects. The
second part is not published; see `token_error`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion import noise
from altdiffusion.diffusion.readout import ReadOut, readout_error
from altdiffusion.diffusion.teacher import eos_vectors, sentence_vectors
from altdiffusion.diffusion.text_encoder import encode_text, tokenize
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.layout import PARALLEL
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.data.token_check import TokenColumn
from altdiffusion.training.model.flops import step_flops
from altdiffusion.training.order.run_key import RunKey
from altdiffusion.training.tasks.pair import Pair


class DistillationTask:
    """A student, its frozen teachers, and the frozen cross-attention of the UNet that will read it.

    Samples: `token_ids` int32 [B, T], the student's; `teacher_ids` int32 [B, U].

    Args:
        key: the key of the run's draws; by default that of a new run of this config.
    """

    layout = PARALLEL
    weights_file = checkpoints.TEXT_ENCODER

    def __init__(self, config: TrainConfig, pair: Pair, device: torch.device, key: RunKey | None = None) -> None:
        assert config.distillation is not None
        self.seed = (key or RunKey.of(config)).seed(config.seed)
        self.config, self.settings, self.device = config, config.distillation, device
        self.module = self.student = pair.student.to(device).train()
        self.trained = [(name, parameter.requires_grad_(True)) for name, parameter in self.student.named_parameters()]
        self.english = pair.english.to(device).eval().requires_grad_(False)
        self.tower = pair.tower.to(device).eval().requires_grad_(False) if pair.tower is not None else None
        self.eos_id, self.english_pad_id = pair.eos_id, pair.english_pad_id
        self.empty_ids = tokenize(pair.english_tokenizer, [""]).to(device)
        self.tokens: Sequence[TokenColumn] = [
            TokenColumn(ids="token_ids", text="translation", tokenizer=pair.tokenizer),
            TokenColumn(ids="teacher_ids", text="caption", tokenizer=pair.english_tokenizer),
        ]
        self._flops: dict[int, float] = {}
        self.readout = ReadOut(pair.unet).to(device) if self.settings.token_term == "readout" else None

    def weights(self) -> dict[str, Tensor]:
        return dict(self.student.state_dict())

    def loss(self, samples: Samples) -> Tensor:
        weight = self.settings.token_weight
        ids = samples["token_ids"]
        if weight == 0:  # a masked position changes no other vector: columns of padding alone need not be computed
            ids = ids[:, : int((ids != self.student.pad_id).sum(1).max())]
        ids = ids.to(self.device, non_blocking=True).to(torch.int64)
        teacher_ids = samples["teacher_ids"].to(self.device, non_blocking=True).to(torch.int64)
        with self._autocast():
            with torch.no_grad():
                wanted, wanted_context = self.teach(teacher_ids)
            feature, context = self.student(ids)
            error = squared_error(feature, wanted)
            if weight > 0:
                error = error + weight * self.token_error(context, wanted_context, samples.step)
        return error

    def flops(self, samples: Samples) -> float:
        """Count the student alone: teachers and attention-output matching count as time, not work."""
        length = int(samples["token_ids"].shape[1])
        if length not in self._flops:
            self._flops[length] = step_flops(self.student, torch.zeros(1, length, dtype=torch.int64, device="meta"))
        return self._flops[length]

    def teach(self, teacher_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (feature [B, F], context [B, U, D]) of int64 [B, U]."""
        context = encode_text(self.english, teacher_ids, self.english_pad_id)
        if self.tower is None:
            return sentence_vectors(self.english, context, teacher_ids, self.eos_id), context
        pooled = eos_vectors(self.tower.text_model(teacher_ids).last_hidden_state, teacher_ids, self.eos_id)
        projected = self.settings.teacher_output == "projected"
        return self.tower.text_projection(pooled) if projected else pooled, context

    def token_error(self, context: Tensor, wanted: Tensor, step: int) -> Tensor:
        """Return how far the student's context [B, T, D] is from the teacher's [B, U, D], by `distillation.token_term`.

        `readout`: attention-output matching with the UNet's own cross-attention (diffusion.readout); the queries are
        drawn from (run, seed, step) and are the same for all samples of a batch. `mean`: by the mean over positions.
        `positions`: one by one.
        """
        term = self.settings.token_term
        if term == "mean":
            return squared_error(context.mean(1), wanted.mean(1))
        if term == "positions":
            return squared_error(context, wanted)
        assert self.readout is not None
        keys = torch.tensor([step], device=self.device)
        draw = noise.keyed_normal(self.seed, keys, noise.QUERY, (self.settings.queries, self.readout.numbers))[0]
        with torch.no_grad():
            empty = self.readout.answers(draw, encode_text(self.english, self.empty_ids, self.english_pad_id))
            answers = self.readout.answers(draw, wanted)
        return readout_error(self.readout.answers(draw, context), answers, empty)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            context: contextlib.AbstractContextManager[Any] = torch.autocast(self.device.type, dtype=torch.bfloat16)
            return context
        return contextlib.nullcontext()


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of the squared differences over all entries, in float32; vectors are un-normalised, as
    published."""
    return (student.float() - teacher.float()).square().mean()
