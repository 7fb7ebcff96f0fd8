"""The networks of the distillation stage: a student and what it learns from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from altdiffusion.diffusion.models import load_bundle
from altdiffusion.diffusion.student import Student
from altdiffusion.diffusion.teacher import load_tower
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.weights import load_student_of


@dataclass(kw_only=True)
class Pair:
    """A student and what it learns from, on the CPU.

    Attributes:
        student: the network that is trained.
        tokenizer: the student's.
        english: the base's own text encoder, whose context the base's UNet learned to read.
        english_tokenizer: its tokenizer, which is the tower's as well.
        tower: a text tower with projection for the feature; None takes the EOS vector of `english`.
        unet: the base's.
    """

    student: Student
    tokenizer: Any
    english: Any
    english_tokenizer: Any
    tower: Any | None
    unet: Any

    @property
    def eos_id(self) -> int:
        """Return the token id at whose first position the teacher's vector of a caption is."""
        return int(self.english_tokenizer.eos_token_id)

    @property
    def english_pad_id(self) -> int:
        """Return the padding id, or -1: only an encoder with a mask needs it, and CLIP's tokenizers may have none."""
        found = self.english_tokenizer.pad_token_id
        return -1 if found is None else int(found)


def load_pair(run: ResolvedRun, resume: Checkpoint | None = None) -> Pair:
    """Return the networks of a run of the distillation stage in float32 on the CPU.

    Raises:
        AltDiffusionError: base, student and teacher do not belong together.
    """
    base = load_bundle(run.base)
    student, tokenizer = load_student_of(run, base, resume)
    tower = load_tower(run.teacher) if run.teacher is not None else None
    if tower is not None and tower.config.vocab_size != base.text_encoder.config.vocab_size:
        raise AltDiffusionError(
            f"teacher {run.teacher}",
            f"reads {tower.config.vocab_size:,} token ids, the base's encoder {base.text_encoder.config.vocab_size:,}",
            "both read the same English ids: use the base that was trained behind this teacher",
        )
    return Pair(
        student=student,
        tokenizer=tokenizer,
        english=base.text_encoder,
        english_tokenizer=base.tokenizer,
        tower=tower,
        unet=base.unet,
    )
