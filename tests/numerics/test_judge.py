"""The judge distinguishes drawn shapes under noise and shift, is a function of its seed, and survives its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.judge import Judge, load_judge
from altdiffusion.evaluation.judge_training import kept_judge, train_judge
from altdiffusion.storage.judges import ROWS

IDS = np.array([7, 11, 30, 42], dtype=np.int64)


def shapes() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return a disc, a ring, a cross and a bar, each in two colours on white: uint8 [8, 32, 32, 3]."""
    y, x = np.mgrid[:32, :32] - 15.5
    far = np.hypot(x, y)
    masks = [far < 10, (far < 13) & (far > 9), (abs(x) < 3) | (abs(y) < 3), abs(x + y) < 6]
    images, labels = [], []
    for label, mask in zip(IDS, masks, strict=True):
        for colour in ((200, 30, 40), (20, 60, 190)):
            image = np.full((32, 32, 3), 255, dtype=np.uint8)
            image[mask] = colour
            images.append(image)
            labels.append(label)
    return np.stack(images), np.array(labels, dtype=np.int64)


def test_it_reads_what_a_codec_left() -> None:
    images, labels = shapes()
    judge = train_judge(images, labels, 3, steps=60, batch=32)
    noisy = images + np.random.default_rng(0).normal(0, 20, images.shape)
    damaged = np.roll(np.clip(noisy, 0, 255).astype(np.uint8), (1, -1), (1, 2))
    assert (judge.predict(damaged) == labels).all()
    chances = judge.probabilities(damaged)
    assert chances.shape == (8, 4) and chances.dtype == np.float32
    assert np.allclose(chances.sum(1), 1, atol=1e-5)
    shuffled = np.random.default_rng(1).permutation(images.reshape(8, -1), axis=1).reshape(images.shape)
    assert (judge.predict(shuffled) == labels).mean() < 1  # without the shape the answer is gone


def test_the_seed_decides_and_the_callers_random_state_stays() -> None:
    images, labels = shapes()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    once, twice = (train_judge(images, labels, 1, steps=3, batch=8) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    other = train_judge(images, labels, 2, steps=3, batch=8)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))
    assert not torch.equal(once.head.weight, other.head.weight)


def test_its_file_brings_it_back(tmp_path: Path) -> None:
    images, labels = shapes()
    judge = train_judge(images, labels, 1, steps=5, batch=8)
    judge.save(str(tmp_path / "judge.safetensors"))
    again = load_judge(str(tmp_path / "judge.safetensors"))
    assert np.array_equal(again.classes, IDS)
    assert np.array_equal(again.probabilities(images), judge.probabilities(images))
    data = bytearray((tmp_path / "judge.safetensors").read_bytes())
    (tmp_path / "judge.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(AltDiffusionError, match=r"judge\.safetensors"):
        load_judge(str(tmp_path / "judge.safetensors"))


def test_wrong_input_is_named() -> None:
    images, labels = shapes()
    with pytest.raises(AltDiffusionError, match="labels"):
        train_judge(images, labels[:-1], 0, steps=1)
    with pytest.raises(AltDiffusionError, match=r"are not uint8 \[N, 16, 16, 3\]"):
        train_judge(images[:, :16], labels, 0, steps=1)
    judge = train_judge(images, labels, 0, steps=1, batch=4)
    assert judge.predict(images[:0]).shape == (0,)


def test_a_key_that_is_missing_or_left_over_is_named(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    images, labels = shapes()
    judge, path = train_judge(images, labels, 1, steps=1, batch=8), tmp_path / "judge.safetensors"
    judge.save(str(path))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    save_file(weights | {"second.head": torch.ones(1)}, path, metadata)
    with pytest.raises(AltDiffusionError, match=r"judge .*holds the key second\.head, which nothing uses"):
        load_judge(str(path))
    del weights["head.bias"]
    save_file(weights, path, metadata)
    with pytest.raises(AltDiffusionError, match=r"judge .*lacks the key head\.bias"):
        load_judge(str(path))


@pytest.mark.parametrize(("side", "stages", "features"), [(16, 4, 256), (32, 4, 256), (64, 5, 512), (96, 5, 512)])
def test_each_doubling_of_the_side_adds_a_stage(side: int, stages: int, features: int) -> None:
    images, labels = shapes()
    place = np.arange(side) * 32 // side
    judge = train_judge(images[:, place][:, :, place], labels, 1, steps=2, batch=4)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in judge.features) == stages
    chances, found = judge.read(images[:, place][:, :, place])
    assert chances.shape == (8, 4) and found.shape == (8, features)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert judge.read(images[:0, place][:, :, place])[1].shape == (0, features)


def test_a_judge_of_the_same_inputs_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = shapes()
    shown = np.array([f"c{label}" for label in labels])
    rows = pa.table({"sample_id": [1], "image_sha256": ["a" * 64]}, schema=ROWS)
    lines: list[str] = []

    def kept(seed: int = 1, steps: int = 3, names: npt.NDArray[np.str_] = shown) -> Judge:
        return kept_judge(str(tmp_path), images, names, seed, rows=rows, steps=steps, report=lines.append)

    first = kept()
    (file,) = (tmp_path / "judges").glob("*.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr("altdiffusion.evaluation.judge_training.train_judge", None)  # which must not be called
        assert np.array_equal(kept().read(images)[0], first.read(images)[0]) and not lines
    kept(seed=2), kept(steps=4), kept(names=shown[::-1])
    assert len(list((tmp_path / "judges").glob("*.safetensors"))) == 4

    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1])):
        lines.clear()
        file.write_bytes(damaged)
        assert np.array_equal(kept().read(images)[0], first.read(images)[0])
        assert len(lines) == 1 and file.name in lines[0] and lines[0].endswith("it is trained again")
        load_judge(str(file))  # which is whole again
    with pytest.raises(AltDiffusionError, match="it was trained with other inputs"):
        load_judge(str(file), "0" * 64)
