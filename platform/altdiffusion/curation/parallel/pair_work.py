"""Pairs: from a corpus's rows to texts whose two sides can mean the same, split into buckets of English texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.curation.config import CorpusConfig, LanguageConfig, PairsConfig
from altdiffusion.curation.language import clean
from altdiffusion.curation.language.clean import clean_captions, tidy_captions
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.curation.links.select_work import by_bucket
from altdiffusion.curation.parallel.corpus import read_rows
from altdiffusion.curation.rejects import CAPTION_LANGUAGE, IDENTICAL, LANGUAGE, LENGTH_RATIO, SCORE, TEXT, coded
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.reject_reasons import Reason, rejects_table
from altdiffusion.execution.units import Unit
from altdiffusion.hashing import hash64, murmur64
from altdiffusion.records import PARALLEL
from altdiffusion.storage.ledger import UnitRecord

REASONS = (TEXT, SCORE, IDENTICAL, LENGTH_RATIO, LANGUAGE, CAPTION_LANGUAGE)
"""The reasons in their order: the first that a row fails is its reason. `language` is the translation's."""
_SHOWN = 80

Mask = npt.NDArray[np.bool_]


class PairsWork(RangeWork):
    """The work on a row range of a corpus; a unit leaves one shard per bucket, empty ones included."""

    def __init__(
        self,
        *,
        lake: str,
        dataset: str,
        corpora: Mapping[str, CorpusConfig],
        pairs: PairsConfig,
        language: LanguageConfig,
    ) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.corpora, self.pairs, self.language = dict(corpora), pairs, language
        self._identifier: LanguageIdentifier | None = None

    def setup(self) -> None:
        """Load the language model."""
        self._identifier = LanguageIdentifier(self.language)
        clean.load()

    def run(self, unit: Unit) -> UnitRecord:
        """Read, decide and write one unit."""
        corpus = self.corpora[str(unit.payload["corpus"])]
        accepted, rejects, first = [PARALLEL.empty_table()], [], 0
        for table in read_rows(unit, corpus):
            kept, dropped = self.sift(table, corpus, unit.id, first)
            accepted.append(kept)
            rejects.append(dropped)
            first += table.num_rows
        kept = pa.concat_tables(accepted)
        bucket = (hash64(kept["caption"]) % np.uint64(self.pairs.buckets)).astype(np.uint16)
        return finish_unit(
            self.output,
            unit,
            rows_in=first,
            accepted=by_bucket(kept, bucket, self.pairs.buckets),
            rejects=rejects,
            keep_empty=True,
        )

    def sift(self, table: pa.Table, corpus: CorpusConfig, unit_id: str, first: int) -> tuple[pa.Table, pa.Table]:
        """Return PARALLEL rows (without ids) and REJECTS of some rows, which begin with row `first` of the unit."""
        if self._identifier is None:
            raise RuntimeError("setup() has not been called")
        english = corpus.language == "en" and corpus.translation is None and corpus.translation_uri is None
        clean = clean_captions if self.pairs.clean_texts else tidy_captions
        caption = clean(table["caption"])
        translation = caption if english else clean(table["translation"])
        score = table["score"].combine_chunks()
        guesses = [self._identifier.guess(side) for side in ((caption,) if english else (caption, translation))]
        ours, theirs = guesses[0], guesses[-1]
        fails: dict[Reason, Mask] = {
            TEXT: self._unusable(caption, ours.letters) | self._unusable(translation, theirs.letters),
            IDENTICAL: np.zeros(len(caption), bool),
        }
        if corpus.score_above is not None:
            beyond = pc.greater(score, pa.scalar(corpus.score_above, pa.float32()))
            fails[SCORE] = ~np.asarray(pc.fill_null(beyond, False), bool)
        if not english:
            same = pc.equal(pc.utf8_lower(caption), pc.utf8_lower(translation))
            fails[IDENTICAL] = np.asarray(pc.fill_null(same, False), bool)
            shorter = np.maximum(np.minimum(ours.letters, theirs.letters), 1)
            fails[LENGTH_RATIO] = np.maximum(ours.letters, theirs.letters) > self.pairs.max_ratio * shorter
        if self.pairs.check_languages:
            for reason, guess, label in (
                (LANGUAGE, theirs, corpus.language),
                (CAPTION_LANGUAGE, ours, "en"),
            ):
                labels = pa.repeat(pa.scalar(label), len(caption))
                fails[reason] = (guess.code != label) | (guess.score < self._identifier.needed(guess, labels))
        codes = np.zeros(len(caption), np.uint8)
        for code, reason in enumerate(REASONS, 1):
            if reason in fails:
                codes[fails[reason] & (codes == 0)] = code
        kept = pa.array(codes == 0)
        unchecked = np.full(len(codes), not self.pairs.check_languages)
        columns: dict[str, Any] = {
            "caption": caption.filter(kept),
            "translation": translation.filter(kept),
            "score": score.filter(kept),
            "language_score": pa.array(theirs.score, pa.float32(), mask=unchecked).filter(kept),
        }
        count = len(columns["caption"])
        tab = pa.scalar("\t", pa.string())
        columns["sample_id"] = murmur64(pc.binary_join_element_wise(columns["caption"], columns["translation"], tab))
        columns["language"] = pa.repeat(pa.scalar(corpus.language), count)
        columns["source"] = pa.repeat(pa.scalar(corpus.name), count)
        for name in ("token_ids", "teacher_ids"):
            columns[name] = pa.array([[]] * count, PARALLEL.field(name).type)
        dropped = np.flatnonzero(codes)
        shown = [
            pc.fill_null(pc.utf8_slice_codeunits(side.take(pa.array(dropped)), 0, _SHOWN), "")
            for side in (caption, translation)
        ]
        rejects = rejects_table(
            unit_id,
            row=dropped + first,
            reason=coded(REASONS, codes[dropped]),
            language=[corpus.language] * len(dropped),
            detail=pa.chunked_array([pc.binary_join_element_wise(*shown, " | ")]),
        )
        return pa.table([columns[field.name] for field in PARALLEL], schema=PARALLEL), rejects

    def _unusable(self, text: pa.Array, letters: npt.NDArray[np.int32]) -> Mask:
        length = pc.fill_null(pc.utf8_length(text), 0).to_numpy(zero_copy_only=False)
        unusable: Mask = (length == 0) | (length > self.pairs.max_chars) | (letters < self.pairs.min_letters)
        return unusable
