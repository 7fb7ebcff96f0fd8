"""The targets: what reads images, answers of the web, files of a lake, configs, prompts and lists.

Each takes bytes. Whatever leaves it as an exception is a finding: documented refusals are caught here, by class.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from altdiffusion.config import from_dict, load_config, semantic
from altdiffusion.curation.config import DownloadConfig, OwnConfig, SourceConfig, StoreConfig
from altdiffusion.curation.images.decode_guard import read_header
from altdiffusion.curation.images.decoder_messages import DONE, REFUSED, TELL
from altdiffusion.curation.images.decoder_process import Decoder
from altdiffusion.curation.language.clean import clean_captions
from altdiffusion.curation.links.reader import fetch_footer, parse_footer
from altdiffusion.curation.links.text_parts import TextBlocks, index_text
from altdiffusion.curation.own.listing import SourceFile, _digest
from altdiffusion.curation.own.metadata import read_metadata
from altdiffusion.curation.own.scan import reader_of, scan_own
from altdiffusion.curation.rejects import Refused
from altdiffusion.curation.web.answers import Answer
from altdiffusion.curation.web.blocklist import parse_list, parse_urls
from altdiffusion.curation.web.contents import decoded
from altdiffusion.curation.web.optout import opt_out
from altdiffusion.curation.web.robots import parse
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.labels import _read_labels
from altdiffusion.generation.prompt_files import read_chunks
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.html.page import fit
from altdiffusion.image_files.printable import printable
from altdiffusion.storage.dataset import Manifest
from altdiffusion.storage.documents import parse_document
from altdiffusion.storage.ledger import UnitRecord
from altdiffusion.terminal import visible
from altdiffusion.urls import join, url_key
from altdiffusion.urls import parse as parse_url
from pipelines.curate import CurateConfig
from tests.source_rows import read_rows

MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Target:
    """One reader, with inputs to begin from."""

    read: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]


# Images:


@functools.cache
def _decoder() -> Decoder:
    return Decoder(semantic(DownloadConfig(image_size=32)))


def image(data: bytes) -> None:
    """Read a header, and what passes the guard with the decoder; its answer is an image or a refusal."""
    try:
        header = read_header(data)
        if header.width * header.height > 1 << 20:
            return
    except Refused:
        return
    answer = _decoder()(data)
    kind, *_, length = TELL.unpack(answer[: TELL.size])
    assert kind in (DONE, REFUSED)
    assert len(answer) == TELL.size + length


def image_seeds() -> list[bytes]:
    plain = np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3)
    seeds = []
    for mode, form, options in (
        ("RGB", "JPEG", {}), ("L", "JPEG", {"progressive": True}), ("CMYK", "JPEG", {}), ("RGB", "PNG", {}),
        ("P", "PNG", {}), ("LA", "PNG", {}), ("I;16", "PNG", {}), ("RGBA", "WEBP", {}),
        ("RGB", "WEBP", {"lossless": True}), ("P", "GIF", {}), ("RGB", "BMP", {}), ("1", "BMP", {}),
        ("RGB", "TIFF", {}), ("L", "TIFF", {"compression": "tiff_lzw"}), ("RGB", "AVIF", {}),
    ):  # fmt: skip
        made = io.BytesIO()
        Image.fromarray(plain).convert("L" if mode == "I;16" else mode).convert(mode).save(made, form, **options)
        seeds.append(made.getvalue())
    return [*seeds, cv2.imencode(".png", plain.astype(np.uint16) * 257)[1].tobytes()]


# The web:


class _Bytes:
    """A connection that brings some bytes and closes."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def held_line(self, limit: int) -> bytes:
        return b""

    async def readline(self, limit: int) -> bytes:
        return self._stream.readline(limit)

    async def read(self, count: int) -> bytes:
        return self._stream.read(count)


def _done(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for what will not come")


async def _answered(data: bytes) -> None:
    answer = Answer(_Bytes(data))
    await answer.read_head()
    opt_out(answer.headers, "bot", noindex=True)
    body = await answer.read(MOST_BYTES)
    assert len(body) <= MOST_BYTES
    plain = decoded(body, answer.headers.tokens("Content-Encoding"), MOST_BYTES)
    assert len(plain) <= MOST_BYTES
    location = answer.headers.get("Location")
    if location:
        base = parse_url("http://a.example/b/c")
        assert base is not None
        parse_url(join(base, location))


def http(data: bytes) -> None:
    """Read an answer: status, headers, framing, encodings, opt-outs, the address of a redirect."""
    with contextlib.suppress(Refused, EOFError):
        _done(_answered(data))


def http_seeds() -> list[bytes]:
    packed = gzip.compress(b"body" * 50, mtime=0)
    return [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Robots-Tag: noai, bot: noindex\r\n\r\nbody",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n4;a=b\r\nbody\r\n0\r\nT: 1\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: //[::ffff:10.0.0.1]:80/a%2f?b#c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed,
        b"HTTP/1.0 200\r\nTDM-Reservation: 1\r\n\r\nto the end",
    ]


def robots(data: bytes) -> None:
    """Read a robots.txt and ask it about paths."""
    rules = parse(data.decode("utf-8", "replace"), "bot/1.0")
    for path in ("/", "/a/b%2Fc?d=é", "/" + "a" * 100, data[:80].decode("latin-1")):
        rules.allows(path)


def robots_seeds() -> list[bytes]:
    return [
        b"User-agent: *\nDisallow: /a*b*c$\nAllow: /%61\nCrawl-delay: 2.5\n\nUser-Agent: bot\nDisallow:\n",
        b"\xef\xbb\xbfuser-agent:bot # x\r\ndisallow: /" + b"*a" * 30 + b"\r\nSitemap: x",
    ]


# A lake:


def manifest(data: bytes) -> None:
    """Read a document of a lake as a manifest and as a record of the ledger."""
    try:
        document = parse_document("lake/x.json", data)
    except AltDiffusionError:
        return
    with contextlib.suppress(AltDiffusionError):
        Manifest.of_document(document)
    with contextlib.suppress(AltDiffusionError, ValueError):  # the counts do not add up
        UnitRecord.of_document(document)


def manifest_seeds() -> list[bytes]:
    shard = {"sha256": "0" * 64, "rows": 3, "bytes": 10, "row_group_rows": 8}
    record = {
        "unit_id": "u0", "index": 0, "input_digest": "0" * 64, "rows_in": 3, "shards": [shard], "rejects": [],
        "rejects_by_reason": {}, "rows_by_language": {"en": 3}, "tally": {},
    }  # fmt: skip
    manifest_like = {
        "format": "altdiffusion-dataset-1", "name": "images", "kind": "images", "parents": ["source:x@" + "0" * 64],
        "config": {"a": [1, None, 1e300]}, "fingerprint": "0" * 64, "code_version": "1", "schema": ["a: int64"],
        "rows": 3, "rows_by_language": {"en": 3}, "rejects_by_reason": {}, "tally": {},
        "shards_table_sha256": "0" * 64,
    }  # fmt: skip
    return [json.dumps(record).encode(), json.dumps(manifest_like).encode(), b'{"a": NaN, "a": 1}', b"[" * 2000]


# Configs, prompts, lists: readers of files, which get one in memory's folder.


@functools.cache
def _folder() -> str:
    return tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)


def _file(name: str, data: bytes) -> str:
    path = os.path.join(_folder(), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
    return path


def config(data: bytes) -> None:
    """Read YAML, with an override made of its beginning, as a config of `jobs.curate`."""
    override = data[:40].decode("latin-1").partition("\n")[0]
    for overrides in ([], [override] if "=" in override else []):
        with contextlib.suppress(AltDiffusionError):
            load_config(CurateConfig, _file("c.yaml", data), overrides)


def config_seeds() -> list[bytes]:
    return [
        b"lake: /lake\nimages: images\nsource: {name: s, uri: /links}\ndownload: {image_size: 256, ports: [80]}\n",
        b"a: &a [*a]\nb: !!python/object/apply:os.system [id]\n? {x: 1}\n: .inf\n",
        b"download.ports.0=1\nlake: 2001-01-01\nimages: !!binary aGk=\nexecution: {wait_for_nodes_s: 1e999}\n",
    ]


_PROMPT_FORMATS = ("jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "parquet")


def prompts(data: bytes) -> None:
    """Read a prompts file of a format that the first byte chooses."""
    name = f"p.{_PROMPT_FORMATS[data[0] % len(_PROMPT_FORMATS)] if data else 'txt'}"
    with contextlib.suppress(AltDiffusionError):
        settings = from_dict(PromptsConfig, {"file": _file(name, data[1:])})
        for _ in read_chunks(settings):
            pass


def prompts_seeds() -> list[bytes]:
    rows = b'{"id": "a", "prompt": "cat", "seed": 1, "width": 512}\n{"prompt": "\\ud800 x"}\n'
    table = pa.table({"prompt": ["cat", None], "seed": [1, 2]})
    parquet = io.BytesIO()
    pa.parquet.write_table(table, parquet)
    packed = gzip.compress(rows, mtime=0)
    return [
        b"\x00" + rows, b"\x01[" + rows.split(b"\n")[0] + b"]", b"\x02id;prompt\n1;\"a\nb\"\n",
        b"\x03id\tprompt\n1\tx\n",
        b"\x04one\ntwo\n", b"\x05" + packed, b"\x06" + parquet.getvalue(),
    ]  # fmt: skip


def lists(data: bytes) -> None:
    """Read bytes as a list of links, a blocklist, and metadata of images."""
    for read in (parse_list, parse_urls):
        with contextlib.suppress(AltDiffusionError):
            read(data, "list")
    for ending in ("csv", "tsv", "jsonl", "txt"):
        with contextlib.suppress(AltDiffusionError):
            uri = _file(f"l.{ending}", data)
            index = index_text(uri)
            blocks = TextBlocks(uri, index, SourceConfig(name="s", uri=uri))
            blocks.read(0, ["url", "caption"])
    for ending in ("csv", "tsv", "jsonl"):
        path = _file(f"metadata.{ending}", data)
        with contextlib.suppress(AltDiffusionError):
            file = SourceFile(name=f"metadata.{ending}", uri=path, size=len(data))
            read_metadata(file, _digest(file), "utf-8")


def lists_seeds() -> list[bytes]:
    return [
        b'url,caption\nhttp://a.example/x.jpg,"a ""cat"""\n', b"url\tcaption\nhttp://a.example/\tx\n",
        b'{"url": "http://a.example/x", "caption": "c"}\n', b"http://a.example/x a caption\n",
        b"url:http://a.example/\ndomain:example.org\nhash:1\nsha256:" + b"0" * 64 + b"\n", b"\xff\xfeu\x00",
    ]  # fmt: skip


_TABLE_FORMATS = ("images.parquet", "images.arrow", "images.tar", "links.parquet", "metadata.parquet", "labels.parquet")


def tables(data: bytes) -> None:
    """Read Parquet, Arrow or a tar file of other people; the first byte chooses which reader."""
    name = _TABLE_FORMATS[data[0] % len(_TABLE_FORMATS)] if data else _TABLE_FORMATS[0]
    uri = _file(os.path.join(name.replace(".", "-"), name), data[1:])
    with contextlib.suppress(AltDiffusionError):
        if name.startswith("images"):
            settings = OwnConfig(uri=uri, store=StoreConfig(image_size=32))
            scan = scan_own(settings)
            for unit in scan.units:
                for _ in reader_of(scan.layout, settings)(unit):
                    pass
        elif name.startswith("links"):
            with open(uri, "rb") as file:  # not planned: pyarrow ends the process where bounds in a footer are not true
                footer = parse_footer(*fetch_footer(file, uri), uri)
            read_rows(
                uri, footer.digest, 0, int(footer.group_rows.sum()), SourceConfig(name="s", preset="own", uri=uri)
            )
        elif name.startswith("metadata"):
            metadata = SourceFile(name=name, uri=uri, size=len(data) - 1)
            read_metadata(metadata, _digest(metadata), "utf-8")
        else:
            _read_labels(uri)


def tables_seeds() -> list[bytes]:
    text = ["a cat", "ein Hund"]
    of_images = pa.table({"image": pa.array([b"\xff\xd8", None], pa.binary()), "text": text})
    structs = pa.table({"image": [{"bytes": b"\xff\xd8", "path": "a.jpg"}, None], "caption": text, "width": [1, 2]})
    of_links = pa.table(
        {"URL": ["http://a.example/1", None], "TEXT": text, "WIDTH": [1.0, 2.0], "punsafe": [0.1, None]}
    )
    metadata = pa.table({"file_name": ["a.jpg", "../b"], "text": text, "n": [[1], []]})
    labels = pa.table({"sample_id": [1, 2], "concept": text, "use": ["judge", None]})
    arrow, packed = io.BytesIO(), io.BytesIO()
    with pa.ipc.new_file(arrow, structs.schema) as writer:
        writer.write_table(structs)
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, body in (("1.jpg", b"\xff\xd8"), ("1.txt", b"a cat"), ("1.json", b'{"caption": "x"}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    files = [_parquet(of_images), arrow.getvalue(), packed.getvalue(), *map(_parquet, (of_links, metadata, labels))]
    return [bytes([number]) + body for number, body in enumerate(files)] + [b"\x00" + _parquet(structs)]


def _parquet(table: pa.Table) -> bytes:
    made = io.BytesIO()
    pa.parquet.write_table(table, made, compression="none", store_schema=False)
    return made.getvalue()


def text(data: bytes) -> None:
    """Clean a caption and show it: on a page, in a line, on a terminal."""
    written = data.decode("utf-8", "replace")
    clean_captions(pa.array([written, None]))
    assert "<" not in fit(written) and '"' not in fit(written)
    assert printable(written).isprintable() or any(mark in written for mark in "\u200c\u200d")
    assert not {chr(code) for code in (7, 8, 27, 127, 155)} & set(visible(written))


def text_seeds() -> list[bytes]:
    return [
        "<b>caf&amp;eacute;</b> Ã© \x1b[31m <script>x</script> <!-- <a href='x".encode(),
        b"<!--" * 400, b"<a " + b"x=1 " * 200, b"&amp;" * 300, b"<script>" * 200, ("Ã\x83Â©" * 200).encode(),
    ]  # fmt: skip


def urls(data: bytes) -> None:
    """Read an address."""
    written = data.decode("utf-8", "replace")
    target = parse_url(written)
    url_key(written)
    assert target is None or not set("\r\n ") & set(target.path + target.authority), "a request could be split"


def urls_seeds() -> list[bytes]:
    return [b"http://user@0x7f.1:080/%00?a#b", b"HTTPS://[fe80::1%25eth0]/x", "http://bücher.example/ä b".encode()]


TARGETS: dict[str, Target] = {
    "image": Target(image, image_seeds),
    "http": Target(http, http_seeds),
    "robots": Target(robots, robots_seeds),
    "manifest": Target(manifest, manifest_seeds),
    "config": Target(config, config_seeds),
    "prompts": Target(prompts, prompts_seeds),
    "lists": Target(lists, lists_seeds),
    "tables": Target(tables, tables_seeds),
    "text": Target(text, text_seeds),
    "urls": Target(urls, urls_seeds),
}
