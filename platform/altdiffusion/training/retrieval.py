"""How well a student replaces its teacher: retrieval on pairs that trained neither (no loss shows it per language).

For each language it counts how often, among the teacher's vectors of all held-out English texts, the one of a
translation's own text is nearest to the student's vector of that translation, by cosine. It takes the first `MOST`
texts per language, so that languages with as many texts can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from altdiffusion.storage.dataset import Lake
from altdiffusion.training.checkpoints import format as checkpoints
from altdiffusion.training.checkpoints.format import Checkpoint
from altdiffusion.training.data.layout import PARALLEL
from altdiffusion.training.order.permutation import I64
from altdiffusion.training.run.resolved import ResolvedRun
from altdiffusion.training.tasks.distillation import DistillationTask
from altdiffusion.training.tasks.pair import load_pair
from altdiffusion.training.weights import load_weights

MOST = 1000
BATCH = 64


def retrieval(
    run: ResolvedRun, found: Sequence[Checkpoint], dataset: str, device: str | torch.device | None = None
) -> list[dict[str, float]]:
    """Return `retrieval/<language>` and `retrieval/mean` (over languages other than English, where there are any) of
    each checkpoint's averages, on a dataset of kind `parallel`."""
    on = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    texts = _texts(run.lake, dataset)
    task = DistillationTask(run.config, load_pair(run), on, run.key)
    wanted = {language: (first, _vectors(teacher, task.teach, on)) for language, (first, teacher, _) in texts.items()}
    results = []
    for checkpoint in found:
        load_weights(run.lake, task.student, checkpoint, "ema", checkpoints.TEXT_ENCODER)
        task.student.eval()
        scores = {}
        for language, (_, _, student) in texts.items():
            own, teacher = wanted[language]
            mine = _vectors(student, task.student, on)
            nearest = (mine @ teacher.T).argmax(1).cpu().numpy()
            scores[language] = float((own[nearest] == own).mean())
        others = [score for language, score in scores.items() if language != "en"] or list(scores.values())
        results.append(
            {f"retrieval/{language}": score for language, score in scores.items()}
            | {"retrieval/mean": sum(others) / len(others)}
        )
    return results


def _texts(lake: str, dataset: str) -> dict[str, tuple[I64, Tensor, Tensor]]:
    """Return by language: a number per English text, its teacher ids [N, U], and the student's ids [N, T]."""
    version = Lake(lake).version(dataset)
    table = version.read(["caption", "language", *PARALLEL.columns])
    languages = table["language"].to_numpy(zero_copy_only=False)
    found = {}
    for language in sorted(set(languages.tolist())):
        rows = table.take(pa.array(np.flatnonzero(languages == language)[:MOST]))
        number = rows["caption"].combine_chunks().dictionary_encode()
        ids = PARALLEL.decode(rows)
        own: I64 = number.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        found[language] = (own, ids["teacher_ids"], ids["token_ids"])
    return found


def _vectors(ids: Tensor, encode: Callable[[Tensor], tuple[Tensor, Tensor]], device: torch.device) -> Tensor:
    """Return the normalised features [N, F] of int32 [N, T]."""
    with torch.no_grad():
        pieces = [encode(piece.to(device, torch.int64))[0].float() for piece in ids.split(BATCH)]
    return F.normalize(torch.cat(pieces), dim=1)
