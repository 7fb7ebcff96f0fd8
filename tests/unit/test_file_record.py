"""The record inside a generated file: what independent readers find, what comes back, and what is not believed."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib
from typing import Any
from xml.etree import ElementTree

import exifread
import numpy as np
import pytest
from PIL import Image

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.generate_work import decode_images, encode_image
from altdiffusion.generation.settings import RECORD_CHARS, ImageFormat
from altdiffusion.generation.webui_text import webui_rows
from altdiffusion.image_files.embed import MARK, readable, xmp
from altdiffusion.image_files.extract import read_carried
from altdiffusion.image_files.printable import printable
from altdiffusion.image_files.record import FileRecord, key_base, key_of, parse_record

FORMATS: tuple[ImageFormat, ...] = ("png", "jpg", "webp")
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
HOSTILE = [
    "</altdiffusion:record>]]><!DOCTYPE x [<!ENTITY a 'b'>]>&a;<?xpacket end='w'?>",
    '"quotes" \\ \'both\' {"json": 1}\nSteps: 1, Seed: 2',
    "\x00\x01\x1b[31m\x7f\x85\u2028\u202e\ufffe\uffff\U0010ffff\U0001f600\ufeff",
    "a",
    "",
    "Drawing 图画 イラスト ภาพวาด น้ำตก 그림 तस्वीर Зображення رسم Resim Hình vẽ Rysunek Afbeelding Desenho Disegno "
    "Dibujo Zeichnung Dessin Рисунок",
]


def record(prompt: str = "a corgi", negative: str | None = None, **changes: Any) -> FileRecord:
    image = {
        "prompt": prompt, "negative_prompt": negative, "seed": -5, "width": 40, "height": 24, "steps": 25,
        "guidance_scale": 7.5, "sampler": "dpmpp",
    } | changes  # fmt: skip
    model, content, settings = f"model:base@{'c' * 64}", "c" * 64, {"dtype": "float32", "batch_rows": 4}
    key = key_of(key_base(content, settings, model), image)
    return FileRecord(model=model, content=content, image=image, settings=settings, row_key=key)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Walk a PNG strictly: signature, lengths, CRCs, order, and nothing after the end."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        found.append((kind, body))
        at += 12 + length
    assert at == len(data) and found[0][0] == b"IHDR" and found[-1] == (b"IEND", b"")
    return found


@pytest.mark.parametrize("image_format", FORMATS)
def test_pixels_are_the_same_with_and_without_a_record(image_format: ImageFormat) -> None:
    plain = encode_image(PIXELS, image_format)
    carrying = encode_image(PIXELS, image_format, record=record())
    assert plain != carrying and not read_carried(plain).marked and read_carried(plain).record is None
    np.testing.assert_array_equal(decode_images([plain]), decode_images([carrying]))


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("prompt", HOSTILE)
def test_any_text_comes_back(image_format: ImageFormat, prompt: str) -> None:
    given = record(prompt, negative=prompt or None)
    data = encode_image(PIXELS, image_format, record=given)
    carried = read_carried(data)
    assert carried.record == given and carried.marked and not carried.problem and carried.record.is_consistent
    assert data == encode_image(PIXELS, image_format, record=given)


def test_a_png_is_well_formed_and_its_texts_are_where_viewers_look() -> None:
    given = record("一只柯基犬, قطة", "blurry")
    found = chunks(encode_image(PIXELS, "png", record=given))
    texts = {}
    for kind, body in found:
        if kind == b"iTXt":
            keyword, rest = body.split(b"\0", 1)
            assert rest[:4] == b"\0\0\0\0"  # not compressed, no language, no translated keyword
            texts[keyword.decode()] = rest[4:].decode()
    assert [kind for kind, _ in found].index(b"iTXt") < [kind for kind, _ in found].index(b"IDAT")
    assert list(texts) == ["parameters", "altdiffusion", "XML:com.adobe.xmp"]
    assert json.loads(texts["altdiffusion"])["image"] == given.image
    ((_, values, problem),) = webui_rows(texts["parameters"].splitlines())
    assert problem is None and values == {
        "prompt": "一只柯基犬, قطة", "negative_prompt": "blurry", "steps": "25", "sampler": "DPM++ 2M",
        "guidance_scale": "7.5", "seed": "-5", "width": "40", "height": "24",
    }  # fmt: skip


@pytest.mark.parametrize("image_format", ["jpg", "webp"])
@pytest.mark.parametrize("prompt", ["ab", "abcd", "abcde", "ein Corgi"])
def test_exif_is_read_by_others(image_format: ImageFormat, prompt: str) -> None:
    given = record(prompt)
    data = encode_image(PIXELS, image_format, record=given)
    tags = exifread.process_file(io.BytesIO(data), strict=True)
    assert tags["Image ImageDescription"].printable.rstrip("\0") == prompt
    with Image.open(io.BytesIO(data)) as image:
        exif = image.getexif()
        assert exif[0x010E].rstrip("\0") == prompt
        comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0" and comment[8:].decode("utf-16-be") == readable(given)


def test_exif_holds_other_scripts_as_utf8() -> None:
    data = encode_image(PIXELS, "jpg", record=record("一只柯基犬"))
    with Image.open(io.BytesIO(data)) as image:
        assert "一只柯基犬".encode() in image.info["exif"]


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_mark_is_where_iptc_puts_it(image_format: ImageFormat) -> None:
    data = encode_image(PIXELS, image_format, record=record(HOSTILE[0]))
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["xmp"].decode()
    begin = packet.index("?>") + 2
    root = ElementTree.fromstring(packet[begin : packet.rindex("<?")])
    (mark,) = root.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert mark.text == MARK == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("character", ["&", "\U0001f600", '"', "\ufffe"])
def test_the_longest_prompts_fit(image_format: ImageFormat, character: str) -> None:
    longest = character * RECORD_CHARS[image_format]
    given = record(longest, negative=longest)
    assert read_carried(encode_image(PIXELS, image_format, record=given)).record == given


def test_xmp_that_another_program_rewrote_is_read() -> None:
    given = record('a "corgi" & <cat>')
    root = ElementTree.fromstring(xmp(given).decode().removeprefix("\ufeff"))
    (description,) = root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    for child in list(description):
        description.set(child.tag, str(child.text))
        description.remove(child)
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "WEBP", xmp=ElementTree.tostring(root))
    carried = read_carried(buffer.getvalue())
    assert carried.record == given and carried.marked


def with_chunk(text: str) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info, buffer = PngInfo(), io.BytesIO()
    info.add_itxt("altdiffusion", text)
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def changed(**changes: Any) -> str:
    return json.dumps(json.loads(record().to_json()) | changes)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", "[" * 100_000, changed(format="altdiffusion/2"), changed(content="../../etc/passwd"),
        changed(row_key=5), changed(model=None), changed(image=[]), changed(image={"prompt": "a"}),
        changed(image={**record().image, "seed": 2**63}), changed(image={**record().image, "width": True}),
        changed(image={**record().image, "guidance_scale": 1e308}).replace("1e+308", "1e999"),
        changed(settings={"x": 0}).replace(" 0", " NaN"), changed(image={**record().image, "prompt": "x" * (1 << 18)}),
        "1" * 5000,
    ],
)  # fmt: skip
def test_a_record_that_no_job_wrote_is_refused_with_a_reason(text: str) -> None:
    carried = read_carried(with_chunk(text))
    assert carried.record is None and carried.problem
    with pytest.raises(AltDiffusionError, match="Remedy"):
        parse_record(text)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_that_are_damaged_do_not_raise(seed: int) -> None:
    draw = np.random.default_rng(seed)
    data = bytearray(encode_image(PIXELS, FORMATS[seed % 3], record=record()))
    for place in draw.integers(0, min(len(data), 1500), 6):
        data[place] = draw.integers(0, 256)
    for body in (bytes(data), bytes(data[: draw.integers(0, len(data))])):
        read_carried(body)


def test_an_edited_record_no_longer_has_its_key() -> None:
    given = record()
    assert given.is_consistent
    for change in ({"model": "model:other@" + "d" * 64}, {"content": "d" * 64}, {"settings": {}}):
        assert not dataclasses.replace(given, **change).is_consistent
    assert not dataclasses.replace(given, image={**given.image, "prompt": "a cat"}).is_consistent
    assert not dataclasses.replace(given, image={**given.image, "prompt": "\ud800"}).is_consistent


def test_text_from_a_file_cannot_control_a_terminal() -> None:
    assert printable("\x1b[2J\r\n\u202eabc\x9b\u2028") == r"\x1b[2J\r\n\u202eabc\x9b\u2028"
    assert printable("می‌خواهم 一只柯基犬 กำลัง") == "می‌خواهم 一只柯基犬 กำลัง"
    assert len(printable("x" * 1000)) == 300
