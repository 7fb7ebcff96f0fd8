"""What the student learns in the distillation stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from altdiffusion.config import operational
from altdiffusion.constraints import Checked, Invalid, at_least
from altdiffusion.training.config.hub_ids import unpinned

TokenTerm = Literal["readout", "mean", "positions"]
TeacherOutput = Literal["pooled", "projected"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig(Checked):
    """Loss: MSE of the student's CLS vector against the teacher's EOS vector, as published, plus `token_weight` times
    a term for the positions that the UNet reads, which is not published (docs/training.md gives the reasons)."""

    teacher: str | None = operational(None)
    """URI of a CLIP text tower with projection (transformers), or a hub model at one commit. Null learns from the
    base's own English encoder, with a student of one head. Its content, not its path, decides the result."""
    teacher_output: TeacherOutput = "pooled"
    """Which of the teacher's vectors the student's feature learns: `pooled`, the last layer's at the first EOS after
    the final layer norm (`pooler_output`), as the released code has it; `projected`, that one through the teacher's
    text projection (`text_embeds`), which CLIP compares with images. Without a teacher, the base's own encoder has
    no projection and its pooled vector is learned."""
    token_term: TokenTerm = "readout"
    """`readout`: attention-output matching, by the outputs of the base's cross-attention (diffusion.readout); `mean`:
    the mean over positions; `positions`: position by position."""
    token_weight: Annotated[float, at_least(0, "give 0 to switch the term off")] = 1.0
    """0 switches the term off."""
    queries: Annotated[int, at_least(1, "16 is the default")] = 16
    """Queries per cross-attention layer, drawn again in every step; for `readout`."""
    held_out: str | None = operational(None)
    """Dataset of kind `parallel` on which checkpoints are measured (retrieval by language); it trains nothing."""

    def conflicts(self) -> Iterator[Invalid]:
        yield from unpinned(self, "teacher")
        if self.token_weight == 0 and self.teacher is not None:
            yield Invalid(
                "token_weight",
                "leaves the second head untrained, which the UNet reads",
                "give e.g. 1, or leave teacher out for a student of one head",
            )
