"""Heads in closed form, from files as published: V1 linear, V2 in five linear layers, NSFW standardised, with relu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from altdiffusion.config import from_dict
from altdiffusion.curation.config import HeadConfig
from altdiffusion.curation.scoring.heads import Head
from altdiffusion.diffusion.pinned_files import load_tensors
from altdiffusion.errors import AltDiffusionError
from tests.curation_lake import sha256_of

V1 = Path(__file__).parents[3] / "shared" / "data" / "sa_0_4_vit_l_14_linear.pth"
V1_SHA256 = "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
needs_v1 = pytest.mark.skipif(
    not V1.is_file(),
    reason="LAION's sa_0_4_vit_l_14_linear.pth (4 kB) is not in ../shared/data next to the repository",
)
State = dict[str, torch.Tensor]


def state(names: list[str], widths: list[int], seed: int = 0) -> State:
    """Return random layers under the given names."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, wide, out in zip(names, widths[:-1], widths[1:], strict=True):
        found[f"{name}.weight"] = torch.randn(out, wide, generator=generator) / wide**0.5
        found[f"{name}.bias"] = torch.randn(out, generator=generator)
    return found


def head(path: Path, tensors: State, width: int, **settings: Any) -> Head:
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return Head(from_dict(HeadConfig, {"uri": str(path), "sha256": sha256_of(path), **settings}), width)


def unit(rows: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.random.default_rng(3).normal(size=(rows, width)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_a_linear_head_is_the_dot_product_and_the_bias(tmp_path: Path) -> None:
    e = unit(5, 6)
    weight, bias = torch.arange(6.0)[None], torch.tensor([3.5])
    found = head(tmp_path / "v1.pth", {"weight": weight, "bias": bias}, 6)(torch.from_numpy(e))
    assert found.shape == (5,) and np.abs(found.numpy() - (e @ np.arange(6) + 3.5)).max() < 1e-6


@needs_v1
def test_laions_v1_is_its_weights_on_the_unit_vectors() -> None:
    tensors = load_tensors(str(V1), V1_SHA256)
    loaded = Head(HeadConfig(uri=str(V1), sha256=V1_SHA256), 768)
    axes = loaded(torch.eye(768))
    assert torch.allclose(axes, tensors["weight"][0] + tensors["bias"], atol=1e-6)
    assert float(loaded(torch.zeros(1, 768))) == pytest.approx(3.52937, abs=1e-5)


def test_v2_without_activations_is_one_affine_map(tmp_path: Path) -> None:
    widths = [768, 1024, 128, 64, 16, 1]
    tensors = state([f"layers.{number}" for number in (0, 2, 4, 6, 7)], widths)  # 1, 3, 5 are dropouts
    loaded = head(tmp_path / "v2.pth", tensors, 768, hidden=widths[1:-1])
    e = unit(4, 768).astype(np.float64)
    product, shift = np.eye(768), np.zeros(768)
    for number in (0, 2, 4, 6, 7):
        weight, bias = (tensors[f"layers.{number}.{k}"].double().numpy() for k in ("weight", "bias"))
        product, shift = weight @ product, weight @ shift + bias
    expected = (e @ product.T + shift)[:, 0]
    assert np.abs(loaded(torch.from_numpy(e).float()).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_nsfw_head_standardises_cuts_below_zero_and_squashes(tmp_path: Path, ending: str) -> None:
    widths = [768, 64, 512, 256, 1]
    tensors = state([f"linear_{number}" for number in (1, 2, 3, 4)], widths)
    generator = np.random.default_rng(7)
    mean, variance = generator.normal(size=768) / 30, generator.uniform(1e-4, 1e-2, 768)
    variance[3] = 0.0  # a component that never varied: Keras divides by 1e-7 there
    tensors |= {"norm.mean": torch.tensor(mean).float(), "norm.variance": torch.tensor(variance).float()}
    loaded = head(
        tmp_path / f"nsfw.{ending}",
        tensors,
        768,
        hidden=widths[1:-1],
        activation="relu",
        sigmoid=True,
        standardise=True,
    )
    e = unit(4, 768)
    e[:, 3] = mean[3].astype(np.float32)
    x = (e.astype(np.float64) - mean.astype(np.float32)) / np.maximum(np.sqrt(variance.astype(np.float32)), 1e-7)
    for number in (1, 2, 3, 4):
        weight, bias = (tensors[f"linear_{number}.{k}"].double().numpy() for k in ("weight", "bias"))
        x = x @ weight.T + bias
        x = np.maximum(x, 0) if number < 4 else x
    expected = 1 / (1 + np.exp(-x[:, 0]))
    found = loaded(torch.from_numpy(e)).numpy()
    assert np.abs(found - expected).max() < 1e-5 and found.min() >= 0 and found.max() <= 1


def test_layers_go_by_the_numbers_in_their_names_not_by_the_alphabet(tmp_path: Path) -> None:
    widths = [2] * 11 + [1]
    tensors = state([f"l.{number}" for number in range(11)], widths)  # l.10 sorts before l.2
    loaded = head(tmp_path / "deep.safetensors", tensors, 2, hidden=[2] * 10)
    x = torch.eye(2)
    for number in range(11):
        x = x @ tensors[f"l.{number}.weight"].T + tensors[f"l.{number}.bias"]
    assert torch.allclose(loaded(torch.eye(2)), x[:, 0], atol=1e-5)


def test_a_head_that_is_not_as_configured_is_refused(tmp_path: Path) -> None:
    linear = {"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}
    for changes, width in (({}, 9), ({"hidden": [4]}, 8), ({"standardise": True}, 8)):
        with pytest.raises(AltDiffusionError, match=r"holds bias \[1\], weight \[1, 8\], not layers"):
            head(tmp_path / "a.pth", linear, width, **changes)
    for tensors in ({**linear, "more": torch.zeros(1)}, {"weight": torch.zeros(1, 8)}, {}):
        with pytest.raises(AltDiffusionError, match=r"not layers \[8, 1\]"):
            head(tmp_path / "b.pth", tensors, 8)
    head(tmp_path / "c.pth", linear, 8)
    with pytest.raises(AltDiffusionError, match=r"c\.pth: has SHA-256"):
        Head(HeadConfig(uri=str(tmp_path / "c.pth"), sha256="0" * 64), 8)
    with pytest.raises(AltDiffusionError, match="is not there"):
        Head(HeadConfig(uri=str(tmp_path / "none.pth"), sha256="0" * 64), 8)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemError('code ran')",))


def test_no_code_runs_from_a_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"weight": Bomb()}, path)
    with pytest.raises(AltDiffusionError, match="cannot be read as weights only"):
        load_tensors(str(path), sha256_of(path))
    for name, content in (("text.pth", b"hello"), ("text.safetensors", b"hello"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AltDiffusionError, match="cannot be read as weights only"):
            load_tensors(str(tmp_path / name), sha256_of(tmp_path / name))
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(AltDiffusionError, match="is not a flat collection"):
        load_tensors(str(tmp_path / "nested.pth"), sha256_of(tmp_path / "nested.pth"))
