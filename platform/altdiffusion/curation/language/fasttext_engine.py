"""The fastText library itself, as an engine: its own best label and probability, comparable with other pipelines.

It reads any supervised model, `.bin` or `.ftz`. The caption is given to it as it is, but for line breaks, which end
a text there, and a caption without letters stays unknown: the library would answer as for an empty one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language.guess import UNKNOWN, Guess
from altdiffusion.curation.language.vectorised_engine import count_letters
from altdiffusion.diffusion.pinned_files import local_pinned
from altdiffusion.errors import AltDiffusionError

_LABEL = "__label__"


class FastTextEngine:
    """Asks the library for each caption."""

    def __init__(self, config: LanguageConfig) -> None:
        """Load the model.

        Raises:
            AltDiffusionError: the library cannot read the file.
        """
        import fasttext.FastText

        fasttext.FastText.eprint = lambda *_, **__: None  # it prints a warning on every load
        path = local_pinned(config.model, config.model_sha256)
        try:
            self._model = fasttext.FastText.load_model(path)
        except ValueError as error:
            raise AltDiffusionError(
                f"model {config.model}", f"is not a fastText model ({error})", "give a .ftz or .bin file"
            ) from error
        self.labels: tuple[str, ...] = tuple(label.removeprefix(_LABEL) for label in self._model.get_labels())
        self._number = {label: number for number, label in enumerate(self.labels)}

    def guess(self, captions: pa.Array) -> Guess:
        """Return the library's best label of each caption (string, nulls allowed), with its probability."""
        text = pc.fill_null(captions.cast(pa.string()), "")
        letters = count_letters(text)
        number = np.full(len(text), len(self.labels), np.intp)
        score = np.zeros(len(text), np.float32)
        predict = self._model.f.predict  # the wrapper around it raises under NumPy 2
        for row in np.flatnonzero(letters):
            line = text[int(row)].as_py().replace("\n", " ")
            ((probability, label),) = predict(line + "\n", 1, 0.0, "strict") or [(0.0, "")]
            number[row] = self._number.get(label.removeprefix(_LABEL), len(self.labels))
            score[row] = probability
        return Guess(
            labels=np.array([*self.labels, UNKNOWN], object),
            number=number,
            score=score,
            letters=letters,
            open=np.zeros(len(text), bool),
        )
