"""Features of images: generated or real images -> one row of kind `features` per image.

A unit reads the images of a row range, and only one batch of them is decoded at a time. What it writes is small, at
most 8 KiB for the features and 4 KiB for the class probabilities of Inception and 3 KiB per embedding, and everything
that is measured follows from it. KID, CMMD and retrieval compare single images, so sums alone would not do.

The networks always see a full batch, padded with black images or empty texts, so a unit that runs twice writes the same
bytes. Images and texts that occur several times in a unit are looked at once.

Shapes: n rows, U distinct images or texts of a unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from altdiffusion.config import semantic
from altdiffusion.diffusion.image_crop import Unreadable, open_rgb
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.judge import Judge
from altdiffusion.evaluation.measures.network import FeatureNetwork
from altdiffusion.evaluation.measures.resize import resized
from altdiffusion.evaluation.measures.settings import MeasuresConfig
from altdiffusion.evaluation.measures.texts import Text, read_texts
from altdiffusion.execution.range_work import RangeWork, finish_unit
from altdiffusion.execution.units import Unit
from altdiffusion.records import FEATURES
from altdiffusion.storage.binary_columns import binary_rows
from altdiffusion.storage.ledger import UnitRecord

Floats = NDArray[np.float32]
T = TypeVar("T")


def columns(config: MeasuresConfig, *, generated: bool) -> tuple[str, ...]:
    """Return the columns that the measures need of generated or of real images."""
    by_column = {
        "features": {"fid", "kid"},
        "probabilities": {"is"} if generated else set(),
        "image_embedding": {"cmmd"} | ({"clip_sim_english", "clip_sim_native", "retrieval"} if generated else set()),
        "text_embedding": {"clip_sim_native", "retrieval"} if generated else set(),
        "english_embedding": {"clip_sim_english"} if generated else set(),
    }
    return tuple(name for name, measures in by_column.items() if measures & set(config.measures))


def feature_settings(config: MeasuresConfig, *, generated: bool) -> dict[str, Any]:
    """Return what decides the features of generated or of real images; the rest only decides what comes of them."""
    wanted = columns(config, generated=generated)
    networks = {
        "network": config.network if {"features", "probabilities"} & set(wanted) else None,
        "judge": config.judge if {name for name in wanted if name.endswith("embedding")} else None,
    }
    sizes = {"batch": config.batch, "dtype": config.dtype, "rows_per_unit": config.rows_per_unit}
    return {"columns": list(wanted), **sizes, **{name: one and semantic(one) for name, one in networks.items()}}


class FeatureWork(RangeWork):
    """The work on a row range of images.

    Args:
        lake: URI of the lake.
        dataset: name of the dataset of features.
        config: what is measured.
        cases: URI of the cases file, for generated images; None for real images.
    """

    def __init__(self, *, lake: str, dataset: str, config: MeasuresConfig, cases: str | None) -> None:
        super().__init__(lake=lake, dataset=dataset)
        self.config, self.cases = config, cases
        self._columns = columns(config, generated=cases is not None)
        self._network: FeatureNetwork | None = None
        self._judge: Judge | None = None
        self._texts: dict[str, Text] = {}

    def setup(self) -> None:
        """Load the networks that the measures need."""
        config = self.config
        if config.network is not None and {"features", "probabilities"} & set(self._columns):
            self._network = FeatureNetwork(config.network, device=config.device)
        if config.judge is not None and "image_embedding" in self._columns:
            self._judge = Judge(config.judge, device=config.device, dtype=config.dtype)
        self._texts = read_texts(self.cases) if self.cases is not None else {}

    def run(self, unit: Unit) -> UnitRecord:
        """Write the features of one unit.

        Raises:
            AltDiffusionError: an image cannot be decoded, or its prompt is not among the cases.
        """
        rows = self.rows_of(unit)
        columns = self._names(rows) | self._of_images(rows)
        if self.cases is not None:
            columns |= self._of_texts(rows)
        made = [columns.get(field.name, pa.nulls(rows.num_rows, field.type)) for field in FEATURES]
        return finish_unit(
            self.output, unit, rows_in=rows.num_rows, accepted=[pa.table(made, schema=FEATURES)], keep_empty=True
        )

    def _names(self, rows: pa.Table) -> dict[str, Any]:
        named = {name: rows[name] for name in ("language", "image_sha256")}
        if self.cases is None:
            return {"id": rows["sample_id"].cast(pa.string()), **named}
        ids = rows["id"].to_pylist()
        missing = next((name for name in ids if name not in self._texts), None)
        if missing is not None:
            raise AltDiffusionError(
                f"prompt {missing}", f"is not in the cases file {self.cases}", "give the cases that were drawn"
            )
        concepts = pa.array([self._texts[name].concept for name in ids], pa.string())
        return {"id": rows["id"], "seed": rows["seed"], "concept": concepts, **named}

    def _of_images(self, rows: pa.Table) -> dict[str, Any]:
        first, place = _distinct(rows["image_sha256"].to_pylist())
        found: dict[str, list[Floats]] = {}
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="decode") as threads:
            for batch in _batches(first, self.config.batch):
                prepared = list(threads.map(lambda row: self._prepare(rows, row), batch))
                for name, make, at in self._models():
                    stack = np.stack([one[at] for one in prepared])
                    padded = np.zeros((self.config.batch, *stack.shape[1:]), stack.dtype)
                    padded[: len(stack)] = stack
                    found.setdefault(name, []).append(make(padded)[: len(stack)])
        return {name: binary_rows(np.concatenate(parts)[place]) for name, parts in found.items()}

    def _models(self) -> Iterator[tuple[str, Callable[[Any], Floats], int]]:
        """Yield each column, what makes it, and which of the prepared forms of an image that reads."""
        if self._network is not None and "features" in self._columns:
            yield "features", self._network.features, 0
        if self._network is not None and "probabilities" in self._columns:
            yield "probabilities", self._network.probabilities, 0
        if self._judge is not None:
            yield "image_embedding", self._judge.embed_images, 1

    def _prepare(self, rows: pa.Table, row: int) -> tuple[Floats, NDArray[np.uint8]]:
        """Return an image in the forms that the network and the judge read; an empty array where there is none."""
        try:
            rgb = open_rgb(rows["image"][row].as_py())
        except Unreadable as error:
            raise AltDiffusionError(
                f"image {rows['image_sha256'][row].as_py()}", f"cannot be decoded ({error})", "verify its dataset"
            ) from error
        network = self.config.network if self._network is not None else None
        return (
            resized(rgb, network.side, network.resize) if network is not None else np.empty(0, np.float32),
            self._judge.pixels(rgb) if self._judge is not None else np.empty(0, np.uint8),
        )

    def _of_texts(self, rows: pa.Table) -> dict[str, Any]:
        wanted: dict[str, list[str]] = {}
        if "text_embedding" in self._columns:
            wanted["text_embedding"] = rows["prompt"].to_pylist()
        if "english_embedding" in self._columns:
            wanted["english_embedding"] = [str(self._texts[name].english) for name in rows["id"].to_pylist()]
        return {name: self._embedded(texts) for name, texts in wanted.items()}

    def _embedded(self, texts: Sequence[str]) -> Any:
        if self._judge is None:
            raise RuntimeError("setup() has not been called")
        first, place = _distinct(texts)
        size, parts = self.config.batch, []
        for batch in _batches(first, size):
            padded = [texts[row] for row in batch] + [""] * (size - len(batch))
            parts.append(self._judge.embed_texts(padded)[: len(batch)])
        return binary_rows(np.concatenate(parts)[place])


def _distinct(values: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the row of each distinct value's first occurrence, [U], and which of them each row has, [n]."""
    number: dict[str, int] = {}
    first: list[int] = []
    for row, value in enumerate(values):
        if value not in number:
            number[value] = len(first)
            first.append(row)
    return first, [number[value] for value in values]


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
