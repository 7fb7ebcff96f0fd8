"""Image files with readable names, in a folder per version: named/<digest>/<id>-<seed>.<format>.

They are written from the finished version. So a folder holds the images of one version, all of them and no others,
even if the version shares shards with another one or was drawn before the setting was chosen.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from altdiffusion.errors import AltDiffusionError
from altdiffusion.image_files.names import file_stem
from altdiffusion.storage import files
from altdiffusion.storage.dataset import Version
from altdiffusion.storage.erasure import IMAGE_FORMATS, named_folder

THREADS = 8
_COLUMNS = ("id", "seed", "image", "image_format")


def check_ids(ids: pa.Array | pa.ChunkedArray) -> None:
    """Refuse ids that differ only in case: on many file systems they would be one file.

    Raises:
        AltDiffusionError: it names the ids.
    """
    lower = pc.utf8_lower(ids)
    counts = pc.value_counts(lower)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        both = ids.filter(pc.equal(lower, twice[0])).to_pylist()[:2]
        raise AltDiffusionError(
            f"ids {both[0]} and {both[1]}",
            f"differ only in case, as do {len(twice) - 1:,} other groups, and many file systems hold one such file",
            "rename one of them, or set image_files: by_hash",
        )


def write_named(version: Version) -> tuple[str, int]:
    """Write the files of a version that are not there yet.

    Memory holds one shard.

    Returns:
        The URI of the folder, and how many files were written.

    Raises:
        AltDiffusionError: a shard is damaged, or an id of it cannot be the name of a file.
    """
    folder = named_folder(version.folder_uri, version.ref.digest)
    there = set(files.list_names(folder))
    if len(there) == version.rows:
        return folder, 0

    def write(row: dict[str, Any]) -> int:
        image_format = row["image_format"] or "png"
        if image_format not in IMAGE_FORMATS:
            raise AltDiffusionError(f"image {row['id']}", "has no known format", "draw the prompts again")
        name = f"{file_stem(row)}.{image_format}"
        if name in there:
            return 0
        files.write_atomic(files.within(folder, name), row["image"])
        return 1

    written = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for table in version.iter_tables(_COLUMNS):
            if "image_format" not in table.column_names:
                table = table.append_column("image_format", pa.nulls(table.num_rows, pa.string()))
            written += sum(pool.map(write, table.to_pylist()))
    return folder, written
