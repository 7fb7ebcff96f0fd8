"""Data sets of the hub as the library `datasets` opens them: a configuration, its splits, and their shards.

    hf://datasets/OWNER/NAME@<commit> -> configuration -> split -> shard (most often a file) -> rows

The library streams: it fetches what a shard needs while it is read, and writes nothing but its own small notes. Images
arrive as bytes and are decoded by the guarded decoders, never by the library.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.hub_data import HubSet, whole_set
from altdiffusion.curation.own.columns import check_columns
from altdiffusion.curation.own.listing import chunks
from altdiffusion.curation.own.sample import Sample
from altdiffusion.curation.own.tables import image_column, table_sample
from altdiffusion.errors import AltDiffusionError, first_line
from altdiffusion.execution.ranges import new_unit
from altdiffusion.execution.units import Unit

_OPENED = frozenset({"arrow", "csv", "imagefolder", "json", "parquet", "webdataset"})
"""Formats that are opened. Others of the library hold no images, or are pickles."""
_MOST_UNITS = 10_000
"""Units of a split at most: a folder of images without metadata has a shard for each image."""


def check_library(uri: str) -> None:
    """Check that `datasets` is installed.

    Raises:
        AltDiffusionError: it is not.
    """
    if importlib.util.find_spec("datasets") is None:
        raise AltDiffusionError(
            f"source {uri}",
            "is a whole data set of the hub, which the library datasets opens, and that is not installed",
            "pip install 'altdiffusion-platform[datasets]', or name its files: "
            f"{uri.rstrip('/')}/data/*.parquet, or set layout to folder, webdataset or table",
        )


def plan_hub_set(hub_set: HubSet, config: OwnConfig) -> tuple[list[Unit], list[list[str]], int]:
    """Return the units of a data set, [name, identity] of each of its files that is read, and their bytes.

    A file's identity is what the commit lists for it: the SHA-256 of a large file, git's id of a small one. The first
    of all identities is the commit's.

    Raises:
        AltDiffusionError: the data set, configuration or split is not there, is not of images, or reads what is not of
            the commit.
    """
    opened = _open(hub_set.uri, config.subset)
    listed = _listed(hub_set)
    units: list[Unit] = []
    named: set[str] = set()
    for split in _splits(opened, config):
        named |= {_path(hub_set, str(file)) for file in opened.builder.config.data_files[split]}
        stream = opened.splits[split]
        _image_column(opened, split, config)
        check_columns(config, _names(stream, opened.builder.name), f"source {config.uri}", has_captions=False)
        shards = int(stream.num_shards)
        for start, stop in chunks(shards, max(1, -(-shards // _MOST_UNITS))):
            payload = {"uri": hub_set.uri, "split": split, "start": start, "stop": stop, "shards": shards}
            identity = [hub_set.revision, opened.builder.config.name, split, start, stop, shards]
            units.append(new_unit(len(units), identity, payload, name=config.name))
    reads = [["commit", hub_set.revision], ["configuration", opened.builder.config.name]]
    reads += [[name, listed[name][0]] for name in sorted(named) if name in listed]
    return units, reads, sum(listed[name][1] for name in named if name in listed)


class HubSetReader:
    """Reads shards of data sets of the hub."""

    def __init__(self, config: OwnConfig) -> None:
        self._config = config

    def __call__(self, unit: Unit) -> Iterator[Sample]:
        """Yield the samples of a unit.

        Raises:
            AltDiffusionError: the hub cannot be reached, or a file is damaged.
        """
        payload, config = unit.payload, self._config
        uri, split, shards = str(payload["uri"]), str(payload["split"]), int(payload["shards"])
        opened = _open(uri, config.subset)
        column, labels = _image_column(opened, split, config), _labels(opened.splits[split])
        stream = opened.splits[split].decode(False)
        for number in range(int(payload["start"]), int(payload["stop"])):
            rows = iter(stream.shard(num_shards=shards, index=number))
            for place in range(1 << 62):
                with _Naming(f"{uri}, shard {number} of {split}"):
                    row = next(rows, None)
                    if row is None:
                        break
                    row = _plain(row, opened.builder.name, column, labels, uri)
                row.setdefault("split", split)
                yield table_sample(f"{split}/{number:05d}/{place}", row, column, config)


class _Opened:
    """A builder of `datasets` and what it streams, by split."""

    def __init__(self, builder: Any, splits: Mapping[str, Any]) -> None:
        self.builder, self.splits = builder, splits


@functools.lru_cache(maxsize=4)
def _open(uri: str, subset: str | None) -> _Opened:
    check_library(uri)
    import datasets

    hub_set = whole_set(uri)
    assert hub_set is not None
    if os.path.exists(hub_set.repo):
        raise AltDiffusionError(
            f"source {uri}",
            f"has the name of {os.path.abspath(hub_set.repo)}, which the library datasets would open in its place",
            "run the command in another folder",
        )
    datasets.disable_progress_bars()
    with _Naming(uri):
        names = datasets.get_dataset_config_names(hub_set.repo, revision=hub_set.revision)
        usual = datasets.get_dataset_default_config_name(hub_set.repo, revision=hub_set.revision)
        if (subset or usual) not in names:
            problem = "has several configurations" if subset is None else f"has no configuration {subset!r}"
            raise AltDiffusionError(f"source {uri}", problem, f"set subset to one of {', '.join(names[:30])}")
        builder = datasets.load_dataset_builder(hub_set.repo, name=subset, revision=hub_set.revision)
        if builder.name not in _OPENED:
            raise AltDiffusionError(
                f"source {uri}",
                f"is in the format {builder.name}, which is not opened",
                f"give a data set in one of {', '.join(sorted(_OPENED))}",
            )
        for split in builder.config.data_files:
            for file in builder.config.data_files[split]:
                _path(hub_set, str(file))
        splits = builder.as_streaming_dataset()
        return _Opened(
            builder,
            {str(name): one if one.features else one._resolve_features() for name, one in splits.items()},
        )


def _path(hub_set: HubSet, file: str) -> str:
    """Return a file's path in its data set.

    Raises:
        AltDiffusionError: the file is not of the commit: a card may name any address.
    """
    prefix = f"{hub_set.uri}/"
    if not file.startswith(prefix):
        raise AltDiffusionError(
            f"source {hub_set.uri}",
            f"reads {file[:200]}, which is not of this commit and may be other data tomorrow",
            "import that file itself",
        )
    return file.removeprefix(prefix)


def _listed(hub_set: HubSet) -> dict[str, tuple[str, int]]:
    """Return identity and size of each file of a commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _Naming(hub_set.uri):
        tree = HfApi().list_repo_tree(hub_set.repo, recursive=True, revision=hub_set.revision, repo_type="dataset")
        return {
            entry.path: (str(entry.lfs.sha256 if entry.lfs is not None else entry.blob_id), int(entry.size))
            for entry in tree
            if isinstance(entry, RepoFile)
        }


def _splits(opened: _Opened, config: OwnConfig) -> list[str]:
    if config.split is None:
        return list(opened.splits)
    if config.split not in opened.splits:
        raise AltDiffusionError(
            f"source {config.uri}", f"has no split {config.split!r}", f"set split to one of {', '.join(opened.splits)}"
        )
    return [config.split]


def _image_column(opened: _Opened, split: str, config: OwnConfig) -> str:
    features = opened.splits[split].features
    return image_column(features.arrow_schema, config, f"{config.uri}, split {split}")


def _names(stream: Any, kind: str) -> set[str]:
    """Return the columns of a split, in lower case."""
    names = {name.lower() for name in stream.features} | {"split"}
    if kind == "webdataset":
        stated = stream.features.get("json")
        names |= {str(name).lower() for name in (stated if isinstance(stated, dict) else ())}
        names |= {"text"} if "txt" in names else set()
    return names


def _labels(stream: Any) -> dict[str, Any]:
    """Return the columns of classes, whose numbers mean names."""
    import datasets

    return {name: one for name, one in stream.features.items() if isinstance(one, datasets.ClassLabel)}


def _plain(row: Mapping[str, Any], kind: str, column: str, labels: Mapping[str, Any], uri: str) -> dict[str, Any]:
    """Return a row with names for the numbers of classes, and with the image's bytes."""
    plain = dict(row)
    for name, label in labels.items():
        value = plain.get(name)
        plain[name] = label.int2str(value) if isinstance(value, int) and value >= 0 else None
    if kind == "webdataset":
        stated = plain.pop("json", None)
        plain = {**(stated if isinstance(stated, dict) else {}), **plain}
        plain.setdefault("text", plain.pop("txt", None))
    image = plain.get(column)
    if kind == "imagefolder" and isinstance(image, dict) and image.get("bytes") is None and image.get("path"):
        plain[column] = {"path": image["path"], "bytes": _fetched(str(image["path"]), uri)}
    return plain


def _fetched(path: str, uri: str) -> bytes:
    """Return the bytes of an image of a folder, which may be in a zip file: `zip://a.png::hf://...`.

    Raises:
        AltDiffusionError: it is not of the data set.
    """
    import fsspec

    if not path.rpartition("::")[2].startswith(f"{uri}/") or not path.startswith((f"{uri}/", "zip://")):
        raise AltDiffusionError(f"source {uri}", f"names the image {path[:200]}, which is not of it", "leave it out")
    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


class _Naming:
    """A context manager that turns what `datasets` raises into one error that names the source."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, AltDiffusionError):
            return
        module = type(error).__module__.partition(".")[0]
        known = (OSError, ValueError, RuntimeError, pa.ArrowException)
        if not isinstance(error, known) and not module.startswith(("httpx", "httpcore", "datasets", "zipfile")):
            return
        raise AltDiffusionError(
            f"source {self._what}",
            f"cannot be read ({first_line(error)[:300]})",
            "check the name, the commit, the connection and HF_TOKEN; run the same command again to continue",
        ) from error
