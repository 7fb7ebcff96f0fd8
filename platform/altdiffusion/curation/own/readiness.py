"""What can be known to stop an import before it starts, besides the source itself."""

from __future__ import annotations

from altdiffusion.curation.config import OwnConfig
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.curation.web.blocklist import load_blocklist
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import Kind
from altdiffusion.storage.dataset import Lake


def check_ready(lake: Lake, dataset: str, kind: Kind, config: OwnConfig | None = None) -> None:
    """Check that a dataset can be made: its name is free or of the same kind, and models and lists are there.

    Raises:
        AltDiffusionError: the import would stop or mix kinds of rows.
    """
    version = lake.dataset(dataset).head()
    if version is not None and version.manifest.kind != kind:
        raise AltDiffusionError(
            f"dataset {dataset}",
            f"holds {version.manifest.kind}, not {kind}",
            "give the import a dataset name of its own",
        )
    if config is None:
        return
    if config.identifies:
        LanguageIdentifier(config.identify)
    if config.blocklist is not None and config.blocklist_sha256 is not None:
        load_blocklist(config.blocklist, config.blocklist_sha256)
