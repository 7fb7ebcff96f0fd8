"""Writes a safetensors file tensor by tensor, straight from memory, and hashes it on the way.

The format is eight bytes (little-endian) with the length of a JSON header, the header with dtype, shape and offsets of
every tensor, and the tensors one after the other. Any safetensors reader opens it. The library's own writer holds a
second copy of everything while it writes; during training there is no memory for that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PIECE = 8 << 20


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write tensors (contiguous, in host memory) to an open file.

    Returns:
        The description of the file: {"sha256", "bytes"}; and of each tensor: name -> {"dtype", "shape", "sha256"}.
    """
    # The widest first: every tensor then starts at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    whole, size = hashlib.sha256(), 0

    def put(data: bytes | memoryview) -> None:
        nonlocal size
        file.write(data)
        whole.update(data)
        size += len(data)

    put(len(text).to_bytes(8, "little"))
    put(text)
    table = {}
    for name in names:
        data = memoryview(tensors[name].reshape(-1).view(torch.uint8).numpy())
        digest = hashlib.sha256()
        for first in range(0, len(data), _PIECE):
            piece = data[first : first + _PIECE]
            put(piece)
            digest.update(piece)
        entry = header[name]
        table[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "sha256": digest.hexdigest()}
    return {"sha256": whole.hexdigest(), "bytes": size}, table
