"""The decoder's pixels: upright, in the right colours, on white, at full or reduced size."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from altdiffusion.curation.config import DownloadConfig
from altdiffusion.curation.images.decode_guard import inspect
from altdiffusion.curation.images.decoder_messages import DONE, REFUSED, TELL
from altdiffusion.curation.images.decoder_process import Decoder, interpolation, pixels, scale
from altdiffusion.curation.images.header import Header
from altdiffusion.curation.images.resizer import PixelResizer
from tests.encoded_images import RED, encoded

CONFIG = DownloadConfig(min_side=8, max_aspect=20.0)
SETTINGS = {
    "image_size": 64,
    "resize_mode": "keep_ratio",
    "resize_only_if_bigger": True,
    "encode_format": "png",
    "encode_quality": 1,
    "scaled_decode": True,
    "scaled_decode_margin": 1.0,
    "color_space": "srgb",
}


def decoded(body: bytes, divisor: int = 1) -> np.ndarray[Any, Any]:
    """Decode an image to RGB."""
    image = pixels(body, inspect(body, CONFIG), divisor)
    assert image.dtype == np.uint8
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., ::-1]


def answer(body: bytes, **settings: Any) -> tuple[tuple[int, ...], bytes]:
    reply = Decoder({**SETTINGS, **settings})(body)
    return TELL.unpack(reply[: TELL.size]), reply[TELL.size :]


def close(body: bytes, color: tuple[int, int, int], tolerance: int = 3) -> bool:
    found = decoded(body)
    return bool((np.abs(found.astype(int) - np.array(color)) <= tolerance).all())


def test_unusual_images_come_out_in_the_right_colour() -> None:
    assert close(encoded("JPEG", quality=95), RED, 4)
    assert close(encoded("JPEG", mode="L", color=77, quality=95), (77, 77, 77))
    assert close(encoded("JPEG", mode="CMYK", color=(0, 255, 255, 0), quality=95), (255, 0, 0), 4)
    assert close(encoded("PNG", mode="LA", color=(100, 128)), (177, 177, 177))
    assert close(encoded("PNG", mode="RGBA", color=(*RED, 0)), (255, 255, 255))
    assert close(encoded("PNG", mode="RGBA", color=(*RED, 51)), (244, 210, 212), 1)
    assert close(encoded("PNG", mode="I;16", color=40000), (156, 156, 156))
    assert close(encoded("GIF", mode="RGB"), RED)
    palette = Image.new("P", (48, 32), 1)
    palette.putpalette([0, 0, 0, *RED])
    out = io.BytesIO()
    palette.save(out, "PNG", transparency=1)
    assert close(out.getvalue(), (255, 255, 255))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (48, 32), color) for color in (RED, (0, 0, 255), (0, 255, 0))]
    out = io.BytesIO()
    frames[0].save(out, format, save_all=True, append_images=frames[1:], lossless=True)
    assert close(out.getvalue(), RED)


def quarters(orientation: int, format: str = "JPEG", size: tuple[int, int] = (640, 320)) -> tuple[bytes, Any]:
    """Return an image of four coloured quarters that its EXIF orientation turns upright, and the upright image."""
    colours = np.array([[[230, 20, 20], [20, 230, 20]], [[20, 20, 230], [230, 230, 20]]], np.uint8)
    upright = np.repeat(np.repeat(colours, size[1] // 2, 0), size[0] // 2, 1)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    exif[305] = "Somebody's Camera"
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(out, format, exif=exif, quality=95)
    return out.getvalue(), upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("divisor", [1, 2, 8])
def test_every_exif_turn_is_applied(orientation: int, divisor: int) -> None:
    body, upright = quarters(orientation)
    found = decoded(body, divisor)
    expected = upright[divisor // 2 :: divisor, divisor // 2 :: divisor]
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_exif_of_other_formats_too(format: str) -> None:
    body, upright = quarters(6, format)
    assert np.abs(decoded(body).astype(int) - upright).mean() < 6
    head, _ = answer(body)
    assert head[3:5] == (640, 320)


def test_exif_is_dropped_after_it_was_applied() -> None:
    body, _ = quarters(8)
    for format in ("jpg", "png", "webp"):
        head, file = answer(body, encode_format=format, encode_quality=9 if format == "png" else 90)
        assert head[0] == DONE and head[1:5] == (128, 64, 640, 320)
        assert b"Exif" not in file and b"eXIf" not in file and b"Camera" not in file
        with Image.open(io.BytesIO(file)) as stored:
            assert stored.size == (128, 64) and not stored.getexif()


def test_the_scale_leaves_more_than_the_target_or_the_margin() -> None:
    def of(
        width: int, height: int, target: int, *, long: bool = False, format: Any = "jpg", margin: float = 1.0
    ) -> tuple[int, float]:
        header = Header(format=format, width=width, height=height, plain=True)
        return scale(header, target, of_long_side=long, margin=margin)

    assert of(1024, 768, 256) == (2, 1.5)
    assert of(4000, 3000, 256)[0] == 8
    assert of(800, 600, 256)[0] == 2 and of(800, 600, 256, margin=1.25)[0] == 1
    assert of(512, 512, 256)[0] == 1 and of(513, 513, 256)[0] == 2  # 513 / 2 is rounded up
    assert of(1, 5, 1)[0] == 1  # not larger than the target
    assert (
        of(640, 640, 256, margin=1.25) == (1, 2.5) and of(642, 642, 256, margin=1.25)[0] == 2
    )  # as before it could be set
    assert of(4000, 256, 256)[0] == 1 and of(4000, 256, 256, long=True)[0] == 8
    assert of(4000, 3000, 256, format="png")[0] == 1
    assert scale(Header(format="jpg", width=4000, height=3000, plain=False), 256, of_long_side=False)[0] == 1


def test_the_interpolation_goes_by_what_is_left_to_resize() -> None:
    assert [interpolation(2, ratio) for ratio in (1.0, 1.24, 1.25, 1.5, 1.51)] == [
        "cubic", "cubic", "linear", "linear", "area",
    ]  # fmt: skip
    assert interpolation(1, 1.1) == "area"  # the full decode is averaged, as img2dataset does


def scene(number: int, width: int, height: int) -> bytes:
    """Return a JPEG with edges, letters and noise."""
    draw = np.random.default_rng(number)
    image = np.full((height, width, 3), 240, np.uint8)
    for _ in range(40):
        at = (int(draw.integers(0, width)), int(draw.integers(0, height)))
        colour = tuple(int(value) for value in draw.integers(0, 256, 3))
        cv2.circle(image, at, int(draw.integers(5, height // 6)), colour, -1, cv2.LINE_AA)
        cv2.putText(image, "Text", at, cv2.FONT_HERSHEY_SIMPLEX, height / 300, colour, 2, cv2.LINE_AA)
    noisy = image + draw.normal(0, 4, image.shape)
    return bytes(cv2.imencode(".jpg", np.clip(noisy, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


@pytest.mark.parametrize(
    ("size", "divisor"),
    [((520, 520), 2), ((800, 600), 2), ((1024, 768), 2), ((1600, 960), 2), ((2048, 1536), 4), ((4096, 3072), 8)],
)  # fmt: skip
def test_a_scaled_decode_is_close_to_the_full_one(size: tuple[int, int], divisor: int) -> None:
    for number in range(3):
        body = scene(number, *size)
        assert scale(inspect(body, CONFIG), 256, of_long_side=False)[0] == divisor
        images = []
        for scaled in (True, False):
            head, file = answer(body, image_size=256, scaled_decode=scaled)
            assert head[0] == DONE and head[3:5] == size
            images.append(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED).astype(np.float64))
        assert images[0].shape == images[1].shape
        psnr = 10 * np.log10(255**2 / np.mean((images[0] - images[1]) ** 2))
        assert psnr > 33.0, psnr
        assert sharpness(images[0]) > 0.9 * sharpness(images[1])


@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border", "keep_ratio_largest"])
@pytest.mark.parametrize("bigger", [True, False])
def test_a_scaled_decode_of_just_the_size_is_cropped_and_framed_like_any_other(mode: str, bigger: bool) -> None:
    for size in ((96, 64), (95, 63), (64, 128), (66, 66), (64, 64), (33, 32), (32, 20), (20, 12)):
        sides = set()
        for scaled in (True, False):
            options = {"image_size": 32, "resize_mode": mode, "resize_only_if_bigger": bigger}
            head, file = answer(encoded("JPEG", size, "RGB", (9, 99, 199), quality=90), scaled_decode=scaled, **options)
            image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
            assert head[1:3] == (image.shape[1], image.shape[0]) and head[3:5] == size
            sides.add(head[1:3])
        assert len(sides) == 1, (size, sides)


def sharpness(image: Any) -> float:
    """Return the mean square of differences between neighbours."""
    return float(np.mean(np.diff(image, axis=0) ** 2) + np.mean(np.diff(image, axis=1) ** 2))


def test_a_scaled_grey_jpeg_stays_grey() -> None:
    body = encoded("JPEG", (800, 600), "L", 77, quality=90)
    _, file = answer(body)
    assert cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED).ndim == 2


@pytest.mark.parametrize(
    ("mode", "stored"),
    [
        ("no", (300, 200)), ("keep_ratio", (96, 64)), ("center_crop", (64, 64)), ("border", (64, 64)),
        ("keep_ratio_largest", (64, 43)),
    ],
)  # fmt: skip
def test_every_resize_mode_gives_its_size(mode: str, stored: tuple[int, int]) -> None:
    head, file = answer(scene(1, 300, 200), resize_mode=mode)
    assert head[1:3] == stored
    with Image.open(io.BytesIO(file)) as image:
        assert image.size == stored


def test_the_whole_images_hash_is_reported_next_to_the_stored_ones() -> None:
    body = scene(2, 900, 300)
    whole, _ = answer(body, resize_mode="keep_ratio")
    cropped, _ = answer(body, resize_mode="center_crop")
    assert whole[5] == whole[6]
    assert cropped[5] != cropped[6]
    assert ((cropped[6] ^ whole[6]) & (2**64 - 1)).bit_count() <= 6


def test_what_cannot_be_decoded_is_refused_with_a_reason() -> None:
    body = bytearray(encoded("PNG"))
    middle = body.index(b"IDAT") + 6
    body[middle : middle + 4] = bytes(4)
    head, text = answer(bytes(body))
    assert head[0] == REFUSED and text.decode().splitlines()[0] == "decode"
    assert answer(b"GIF89a")[1].decode().splitlines()[0] == "truncated"


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"])
@pytest.mark.parametrize(("format", "quality"), [("jpg", 90), ("png", 3), ("webp", 80)])
def test_pixels_are_resized_as_img2dataset_resizes_a_file_of_them(mode: str, format: str, quality: int) -> None:
    from img2dataset import resizer as theirs

    untouched = theirs.cv2, theirs.A.SmallestMaxSize, theirs.SuppressStdoutStderr
    shapes = [(True, (70, 50)), (True, (20, 30)), (False, (20, 30, 3)), (False, (91, 33, 3)), (True, (500, 7, 3))]
    draw = np.random.default_rng(1)
    shapes += [(bool(number % 2), (*map(int, draw.integers(1, 120, 2)), 3)) for number in range(20)]
    for bigger, sides in shapes:
        image = np.random.default_rng(sides).integers(0, 256, sides, np.uint8)
        options = {"image_size": 40, "resize_mode": mode, "resize_only_if_bigger": bigger}
        options |= {"encode_format": format, "encode_quality": quality}
        encoded, resized = PixelResizer(**options).resize(image)
        file = io.BytesIO(cv2.imencode(".png", image)[1].tobytes())
        expected, width, height, *_, error = theirs.Resizer(**options)(file)
        assert error is None and encoded == expected and resized.shape[:2] == (height, width)
    assert (theirs.cv2, theirs.A.SmallestMaxSize, theirs.SuppressStdoutStderr) == untouched


def test_what_the_resizer_catches_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise cv2.error("Insufficient memory")

    resizer = PixelResizer(image_size=40, resize_mode="no", resize_only_if_bigger=True, encode_quality=90)
    monkeypatch.setattr(cv2, "imencode", full)
    with pytest.raises(RuntimeError, match="Insufficient memory"):
        resizer.resize(np.zeros((3, 3), np.uint8))
