"""A dataset version as Croissant 1.1: JSON-LD that dataset search engines and loaders read.

The vocabulary is that of the Croissant Format Specification 1.1 (MLCommons, 2026-01-29) and of its Responsible AI
extension 1.0; provenance is PROV-O, as section "Using External Vocabularies" shows. The document holds no time, host
or path, so that a version and its `Statements` give one document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from altdiffusion.credentials import redact
from altdiffusion.documents.history import History, languages_of, reasons
from altdiffusion.documents.statements import Statements
from altdiffusion.errors import AltDiffusionError
from altdiffusion.records import SCHEMAS
from altdiffusion.storage.dataset import Version

REQUIRED = ("licence", "url", "creator", "date")
"""What the specification requires and only people can state."""
CONFORMS_TO = ("http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0")
PARQUET = "application/x-parquet"
RECORD_SET, FILE_SET = "rows", "shards"
NO_SEARCH = "No pipeline step searches for personal data. Rows are removed on request (takedown)."
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_ADDRESSES, _IMAGES = ("url", "final_url"), ("image",)
"""Columns whose values are more than text or bytes."""
_SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+\-]*")


def croissant(version: Version, history: History, stated: Statements) -> dict[str, Any]:
    """Return the JSON-LD of a version.

    Args:
        history: of the version.

    Raises:
        AltDiffusionError: the version has no shard, which Croissant cannot describe, or its table of shards is damaged.
    """
    manifest = version.manifest
    shards = list({shard.sha256: shard for shard in version.shards}.values())
    if not shards:
        raise AltDiffusionError(
            version.ref.short, "holds no rows, and Croissant describes files", "name a version that holds rows"
        )
    files = [
        {
            "@type": "cr:FileObject",
            "@id": f"{shard.sha256}.parquet",
            "name": f"{shard.sha256}.parquet",
            "contentUrl": f"shards/{shard.sha256}.parquet",
            "contentSize": f"{shard.bytes} B",
            "encodingFormat": PARQUET,
            "sha256": shard.sha256,
        }
        for shard in shards
    ]
    file_set = {
        "@type": "cr:FileSet",
        "@id": FILE_SET,
        "name": FILE_SET,
        "description": f"All {len(files):,} shards of the version, by name: their folder may hold shards of others.",
        "encodingFormat": PARQUET,
        "includes": [file["contentUrl"] for file in files],
    }
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": list(CONFORMS_TO),
        "name": manifest.name,
        "description": describe(version),
        "version": f"1.0.0+{manifest.digest}",
        "identifier": str(version.ref),
        "citeAs": ", ".join(part for part in (stated.creator, manifest.name, f"version {manifest.digest}") if part),
        "inLanguage": languages_of(version),
        **_stated(stated),
        **_provenance(history, version),
        **_responsible(history, version, stated),
        "distribution": [*files, file_set],
        "recordSet": [_record_set(version)],
    }
    return document


def describe(version: Version) -> str:
    """Return what a version is, in one or two sentences."""
    manifest = version.manifest
    languages = len(languages_of(version))
    return (
        f"{manifest.rows:,} rows of kind {manifest.kind} in {languages} language{'' if languages == 1 else 's'}. "
        f"Version {manifest.digest}: the same inputs and config give the same digest."
    )


def _stated(stated: Statements) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if stated.licence is not None:
        is_name = _SHORT_NAME.fullmatch(stated.licence)
        found["license"] = f"https://spdx.org/licenses/{stated.licence}" if is_name else stated.licence
    if stated.url is not None:
        found["url"] = stated.url
    if stated.creator is not None:
        found["creator"] = {"@type": "sc:Organization", "name": stated.creator}
    if stated.date is not None:
        found["datePublished"] = stated.date
    return found


def _provenance(history: History, version: Version) -> dict[str, Any]:
    parents = [_entity(ref) for ref in version.manifest.parents]
    activity = {
        "@type": "prov:Activity",
        "@id": f"urn:altdiffusion:step:{version.manifest.fingerprint}",
        "prov:label": history.made[-1].step,
        "prov:used": [{"@id": parent["@id"]} for parent in parents],
    }
    found: dict[str, Any] = {"prov:wasGeneratedBy": activity}
    if parents:
        found |= {"prov:wasDerivedFrom": parents, "isBasedOn": [parent["@id"] for parent in parents]}
    return found


def _entity(ref: str) -> dict[str, str]:
    return {"@type": "prov:Entity", "@id": f"urn:altdiffusion:{ref}", "prov:label": ref}


def _responsible(history: History, version: Version, stated: Statements) -> dict[str, Any]:
    """Return the fields of the Responsible AI extension, as far as manifests hold them."""
    manifest = version.manifest
    kinds = {made.kind for made in history.made}
    lost = [f"{made.step}: {line}" for made in history.latest for line in reasons(made.rejects)]
    origins = [node.label for node in history.nodes("source", "blocklist", "model")]
    shares = ", ".join(f"{code} {rows:,}" for code, rows in sorted(manifest.rows_by_language.items()))
    found: dict[str, Any] = {
        "rai:dataCollection": " -> ".join(
            f"{made.step} ({made.node.name}: {made.rows_in:,} rows in, {made.rows:,} rows out)" for made in history.made
        ),
        "rai:dataCollectionRawData": ", ".join(origins) or "none: the version has no source outside of the lake",
        "rai:dataCollectionMissingData": "; ".join(lost) or "no row was rejected",
        "rai:dataPreprocessingProtocol": [redact(f"{made.step}: {made.settings}") for made in history.made],
        "rai:dataBiases": [f"Rows by language: {shares or 'none'}."],
        "rai:dataLimitations": list(_limits(kinds)),
        "rai:personalSensitiveInformation": [NO_SEARCH],
    }
    if "images" in kinds and "links" in kinds:
        found["rai:dataCollectionType"] = ["Web Scraping", "Secondary Data Analysis"]
    if stated.contact is not None:
        found["rai:dataReleaseMaintenancePlan"] = f"Requests for removal: {stated.contact}"
    return found


def _limits(kinds: set[str]) -> Iterator[str]:
    if "links" in kinds:
        yield "Captions are texts that were published next to images; no pipeline step checks that they are true."
        yield "Images and captions stay under their owners' terms; manifests record no licence per row."
    if "generations" in kinds:
        yield "The images were drawn by a model (IPTC digital source type trainedAlgorithmicMedia)."
    if "parallel" in kinds:
        yield "Translations are those of the source."


def _record_set(version: Version) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": RECORD_SET,
        "name": RECORD_SET,
        "description": f"One record per row of kind {version.manifest.kind}.",
        "field": [_field(column) for column in SCHEMAS[version.manifest.kind]],
    }


def _field(column: pa.Field) -> dict[str, Any]:
    meaning = column.metadata[b"meaning"].decode() + (" (may be null)" if column.nullable else "")
    is_list = pa.types.is_list(column.type)
    found = {
        "@type": "cr:Field",
        "@id": f"{RECORD_SET}/{column.name}",
        "name": column.name,
        "description": meaning,
        "dataType": _data_type(column.name, column.type.value_type if is_list else column.type),
        "source": {"fileSet": {"@id": FILE_SET}, "extract": {"column": column.name}},
    }
    return found | ({"isArray": True, "arrayShape": "-1"} if is_list else {})


def _data_type(name: str, dtype: pa.DataType) -> str:
    """Return the type of a column. Croissant has none for bytes: loaders leave the bytes of a text as they are."""
    if name in _ADDRESSES:
        return "sc:URL"
    if name in _IMAGES:
        return "sc:ImageObject"
    if pa.types.is_boolean(dtype):
        return "sc:Boolean"
    if pa.types.is_integer(dtype):
        return f"cr:Int{dtype.bit_width}"
    if pa.types.is_floating(dtype):
        return f"cr:Float{dtype.bit_width}"
    return "sc:Text"
