"""What a source of images is: its layout, its reference for lineage, and its units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.config.own import Layout
from altdiffusion.curation.hub_data import HubSet, whole_set
from altdiffusion.curation.own import folder, hub_sets, tables, tars
from altdiffusion.curation.own.listing import Listing, list_source
from altdiffusion.curation.own.metadata import is_metadata
from altdiffusion.curation.own.sample import Sample, is_image_name
from altdiffusion.errors import AltDiffusionError
from altdiffusion.execution.units import Unit
from altdiffusion.refs import Ref
from altdiffusion.storage import files

Reader = Callable[[Unit], Iterator[Sample]]


@dataclass(frozen=True, kw_only=True)
class OwnScan:
    """A scanned source of images."""

    layout: Layout
    ref: Ref
    """Its digest covers the names, sizes and bytes of what is read; not where it is."""
    units: tuple[Unit, ...]
    files: int
    bytes: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what was found, for the plan."""
        found = f"{self.ref.short}: {self.layout}, {self.files:,} files, {self.bytes / 1e6:,.1f} MB"
        return [f"{found}, {len(self.units):,} units", *(f"note: {note}" for note in self.notes)]


def scan_own(config: OwnConfig) -> OwnScan:
    """List a source, find out its layout, and read what identifies it.

    Raises:
        AltDiffusionError: it is not there, holds no image that could be read, or its layout is not clear.
    """
    hub_set = as_hub_set(config)
    if hub_set is not None:
        units, reads, size = hub_sets.plan_hub_set(hub_set, config)
        count = len(reads) - 2
        return _scan("dataset", config, units, reads, files=count, bytes=size)
    listing = list_source(config.uri)
    layout = _layout(listing, config)
    notes: tuple[str, ...] = ()
    if layout == "folder":
        sorted_folder = folder.sort_folder(listing)
        units, reads = folder.plan_folder(sorted_folder, config)
        notes = tuple(folder.notes(listing, sorted_folder))
    else:
        units, reads = (tars.plan_tars if layout == "webdataset" else tables.plan_tables)(listing, config)
    named = {name for name, _ in reads}
    read = [file for file in listing.files if file.key in named]
    size = sum(file.size for file in read)
    return _scan(layout, config, units, reads, files=len(read), bytes=size, notes=notes)


def _scan(layout: Layout, config: OwnConfig, units: list[Unit], reads: list[list[str]], **found: Any) -> OwnScan:
    if not units:
        raise AltDiffusionError(f"source {config.uri}", "holds no image", f"give a source of {_WANTED}")
    ref = Ref("source", config.name, files.sha256_hex(files.canonical_json(reads)))
    return OwnScan(layout=layout, ref=ref, units=tuple(units), **found)


def as_hub_set(config: OwnConfig) -> HubSet | None:
    """Return the data set of the hub that the library `datasets` is to open; None where files are read as they are.

    Raises:
        AltDiffusionError: it is not pinned to a commit, the library is not installed, or a setting is for a data set.
    """
    hub_set = whole_set(config.uri)
    if hub_set is not None and config.layout in ("auto", "dataset"):
        hub_sets.check_library(config.uri)
        return hub_set
    if config.layout == "dataset" or config.subset is not None or config.split is not None:
        raise AltDiffusionError(
            f"source {config.uri}",
            "is read file by file, and subset, split and layout dataset are for whole data sets of the hub",
            "give hf://datasets/OWNER/NAME@<commit> with layout auto, or leave these settings out",
        )
    return None


def reader_of(layout: Layout, config: OwnConfig) -> Reader:
    """Return what reads the units of a layout."""
    if layout == "folder":
        return folder.FolderReader(config)
    if layout == "dataset":
        return hub_sets.HubSetReader(config)
    return tars.TarReader(config) if layout == "webdataset" else tables.TableReader(config)


_LINKS = "lists of addresses are imported as links (kind: links)"
_WANTED = (
    "image files, tar files (.tar, .tar.gz, .tgz, .tar.zst), or Parquet or Arrow files that hold images (unpack .zip)"
)


def _layout(listing: Listing, config: OwnConfig) -> Layout:
    if config.layout != "auto":
        return config.layout
    what = f"source {config.uri}"
    images = any(is_image_name(file.key) for file in listing.files)
    metadata = any(is_metadata(file) for file in listing.files)
    archives = any(tars.is_tar(file) for file in listing.files)
    tabular = [file for file in listing.files if tables.is_table(file) and not is_metadata(file)]
    if images and listing.is_file:
        raise AltDiffusionError(what, "is a single image", "give the folder that it is in, with its caption next to it")
    if images and archives:
        raise AltDiffusionError(
            what, "holds image files and tar files", "set layout to folder or webdataset, or give one of the two alone"
        )
    if archives:
        return "webdataset"
    if images or (metadata and not listing.is_file):
        return "folder"
    if tabular:
        return "table"
    held = f"holds {_held(listing)}, but no image" if listing.files else "holds no file that can be read"
    raise AltDiffusionError(what, held, f"give {_WANTED}; {_LINKS}")


def _held(listing: Listing) -> str:
    kinds: dict[str, int] = {}
    for file in listing.files:
        last = file.key.rpartition("/")[2]
        kind = f".{last.rpartition('.')[2].lower()}" if "." in last else "no extension"
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count:,} files of {kind}" for kind, count in sorted(kinds.items())[:6])
