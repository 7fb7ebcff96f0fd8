"""How rows of a dataset become tensors: a row group at once, without a loop over rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from altdiffusion.errors import AltDiffusionError

Rows = dict[str, Tensor]
"""Tensors by name, [R, ...] each."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the loader has to know of a kind of dataset."""

    kind: str
    columns: tuple[str, ...]
    """The columns that are read."""
    equal: str | None = None
    """The one of them whose values are byte strings of one length (see ShardReader.read)."""
    decode: Callable[[pa.Table], Rows]
    """Turns a row group into tensors; raises ValueError where rows differ in shape or a value is null."""
    remedy: str
    """The remedy where a dataset is of another kind."""
    row_tensors: bool = True
    """Whether `decode` returns tensors [R, ...] with one element per row, so that rows can be kept apart."""
    rows_name: str = "images"
    """What its rows are, for people."""

    def empty(self, group: Rows, count: int) -> Rows:
        """Return empty tensors for `count` samples of rows like a row group's."""
        return {name: tensor.new_empty((count, *tensor.shape[1:])) for name, tensor in group.items()}

    def fill(
        self, group: Rows, index: Tensor, into: Rows, mirrored: npt.NDArray[np.bool_] | None = None
    ) -> list[Future[None]]:
        """Write the rows `index` (int64 [K]) of a row group into tensors [K, ...] like those of `empty`.

        Args:
            mirrored: which of the samples are mirrored; for layouts of images.

        Returns:
            Futures of the writes that have not ended yet.

        Raises:
            Mixed: the rows have another shape than the tensors.
        """
        for name, tensor in group.items():
            check_shape(name, tensor, into[name])
            torch.index_select(tensor, 0, index, out=into[name])
        return []


class Mixed(Exception):
    """Rows of one part that do not fit one tensor; the text names them."""

    def refused(self, dataset: str) -> AltDiffusionError:
        """Return the error for people that names the dataset."""
        return AltDiffusionError(
            dataset, str(self), "train on datasets of one resolution and one tokenizer, or set order.buckets"
        )


def copy_rows(rows: Rows, into: Rows) -> None:
    """Copy tensors [K, ...] into others.

    Raises:
        Mixed: the rows have another shape than the tensors.
    """
    for name, tensor in rows.items():
        check_shape(name, tensor, into[name])
        into[name].copy_(tensor)


def check_shape(name: str, tensor: Tensor, into: Tensor) -> None:
    """Raise `Mixed` where rows have another shape than the tensor that they are written into."""
    if tensor.shape[1:] != into.shape[1:]:
        raise Mixed(f"mixes {name} of shape {tuple(tensor.shape[1:])} with {tuple(into.shape[1:])}")


def decode_latents(table: pa.Table) -> Rows:
    """Return `latents` float16 [R, C, H, W] and `token_ids` int32 [R, T] of a row group, without a loop over rows.

    Raises:
        ValueError: rows differ in shape or in number of tokens, or a value is null.
    """
    shape = []
    for name in ("channels", "height", "width"):
        values = table.column(name).to_numpy()
        if (values != values[0]).any():
            raise ValueError(f"column {name} differs between rows")
        shape.append(int(values[0]))
    rows = table.num_rows
    values = _bytes(table, "latent", 2 * shape[0] * shape[1] * shape[2])
    latents = values.view("<f2").reshape(rows, *shape)
    # The table's own memory: a copy of a row group costs as much as reading it.
    found = torch.from_numpy(latents if latents.flags.writeable else latents.copy())
    return {"latents": found, "token_ids": _ids(table, "token_ids")}


def decode_parallel(table: pa.Table) -> Rows:
    """Return `token_ids` int32 [R, T] (the student's) and `teacher_ids` int32 [R, U] of a row group.

    Raises:
        ValueError: rows differ in number of tokens, or a value is null.
    """
    return {name: _ids(table, name) for name in ("token_ids", "teacher_ids")}


def _bytes(table: pa.Table, name: str, length: int) -> npt.NDArray[np.uint8]:
    """Return uint8 [R * length] of a column of byte strings of that length, without a copy."""
    array = one_array(table, name)
    if pa.types.is_fixed_size_binary(array.type):
        if array.type.byte_width != length:
            raise ValueError(f"column {name} does not hold {length} items in every row")
        start, buffer = array.offset * length, array.buffers()[1]
    else:
        start, buffer = _check_lengths(array, name, length), array.buffers()[2]
    return np.frombuffer(buffer, dtype=np.uint8)[start : start + len(array) * length]


def _ids(table: pa.Table, name: str) -> Tensor:
    """Return int32 [R, T] of a column of lists."""
    ids = one_array(table, name)
    length = len(ids[0])
    _check_lengths(ids, name, length)
    flat = ids.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, length)
    return torch.from_numpy(flat.astype(np.int32))


def one_array(table: pa.Table, name: str) -> Any:
    """Return a column in one piece; raise ValueError where it holds nulls."""
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if array.null_count:
        raise ValueError(f"column {name} holds nulls")
    return array


def _check_lengths(array: Any, name: str, length: int) -> int:
    """Check that every value has that many items; return the offset of the first one."""
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    if (np.diff(offsets) != length).any():
        raise ValueError(f"column {name} does not hold {length} items in every row")
    return int(offsets[0])


LATENTS = Layout(
    kind="latents",
    columns=("latent", "channels", "height", "width", "token_ids"),
    equal="latent",
    decode=decode_latents,
    remedy="name the dataset that the encode job wrote",
)

PARALLEL = Layout(
    kind="parallel",
    columns=("token_ids", "teacher_ids"),
    decode=decode_parallel,
    remedy="name the dataset that jobs.parallel wrote",
    rows_name="pairs",
)
