"""Resizing by hand, and small random networks called as the published ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from altdiffusion.config import from_dict
from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.judge import Judge
from altdiffusion.evaluation.measures.judge_tokens import JudgeTokens
from altdiffusion.evaluation.measures.network import FeatureNetwork
from altdiffusion.evaluation.measures.resize import Resize, resized
from altdiffusion.evaluation.measures.settings import JudgeConfig, MeasuresConfig, NetworkConfig
from tests.measure_networks import CLASSES, SIDE, WIDTH, Plain, SmallInception, save_judge, save_network

RAMP = Image.fromarray(np.tile(np.array([0, 10, 20, 30], np.uint8)[None, :, None], (4, 1, 3)))
"""Four columns of 0, 10, 20 and 30."""


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("tf-bilinear", [0, 20]),  # pixels 0 and 1 read at 0 and 2
        ("torch-bilinear", [5, 25]),  # at 0.5 and 2.5
        # Bicubic, a = -0.5, widened by 2: weights 0.8671875, 0.8671875, 0.2265625 and -0.0703125 of their sum 1.890625.
        ("clean", [11.09375 / 1.890625, 30 - 11.09375 / 1.890625]),
    ],
)
def test_halving_a_ramp_by_hand(way: Resize, expected: list[float]) -> None:
    made = resized(RAMP, 2, way)
    assert made.shape == (3, 2, 2) and made.dtype == np.float32
    np.testing.assert_allclose(made, np.tile(np.array(expected), (3, 2, 1)), rtol=1e-6)


def test_enlarging_reads_where_each_way_states() -> None:
    np.testing.assert_allclose(resized(RAMP, 8, "tf-bilinear")[0, 0], [0, 5, 10, 15, 20, 25, 30, 30])
    np.testing.assert_allclose(resized(RAMP, 8, "torch-bilinear")[0, 0], [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30])


def test_bilinear_with_pixel_centres_is_torchs_and_no_way_mixes_axes_or_channels() -> None:
    values = np.random.default_rng(0).integers(0, 256, (7, 11, 3), np.uint8)
    rgb = Image.fromarray(values)
    planes = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, (5, 5), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resized(rgb, 5, "torch-bilinear"), expected, atol=1e-4)
    for way in ("clean", "tf-bilinear", "torch-bilinear"):
        one = resized(Image.fromarray(values[:, :, ::-1].copy()), 5, way)  # type: ignore[arg-type]
        np.testing.assert_array_equal(one[::-1], resized(rgb, 5, way))  # type: ignore[arg-type]
        turned = resized(Image.fromarray(values.transpose(1, 0, 2).copy()), 5, way)  # type: ignore[arg-type]
        np.testing.assert_allclose(turned.transpose(0, 2, 1), resized(rgb, 5, way), atol=2e-4)  # type: ignore[arg-type]


def test_clean_keeps_fractions_and_clips_overshoot() -> None:
    edge = Image.fromarray(np.repeat(np.array([[0, 0, 255, 255]], np.uint8), 4, 0)).convert("RGB")
    made = resized(edge, 9, "clean")
    assert made.min() == 0 and made.max() == 255 and (made % 1 != 0).any()


def test_the_network_is_called_as_the_published_file_is(tmp_path: Path) -> None:
    config = from_dict(NetworkConfig, save_network(tmp_path / "net.pt"))
    network = FeatureNetwork(config, device="cpu")
    planes = np.random.default_rng(0).uniform(0, 255, (4, 3, SIDE, SIDE)).astype(np.float32)
    original = SmallInception()
    expected = original(torch.from_numpy(planes), return_features=True).detach().numpy()
    np.testing.assert_allclose(network.features(planes), expected, rtol=1e-5)
    assert network.features(planes).shape == (4, WIDTH)
    logits = expected @ original.output.weight.detach().numpy().T  # without its bias
    exponents = np.exp(logits)
    made = network.probabilities(planes)
    assert made.shape == (4, CLASSES)
    np.testing.assert_allclose(made, exponents / exponents.sum(1, keepdims=True), rtol=1e-4)


def test_a_network_of_other_bytes_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = save_network(tmp_path / "net.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(AltDiffusionError, match=f"has SHA-256 {settings['sha256']}, not {'0' * 64}"):
        FeatureNetwork(from_dict(NetworkConfig, settings | {"sha256": "0" * 64}), device="cpu")
    with pytest.raises(AltDiffusionError, match="is not there"):
        FeatureNetwork(from_dict(NetworkConfig, settings | {"file": str(tmp_path / "none.pt")}), device="cpu")


def test_networks_of_another_form_are_refused(tmp_path: Path) -> None:
    planes = np.zeros((1, 3, SIDE, SIDE), np.float32)
    wrong = from_dict(NetworkConfig, save_network(tmp_path / "net.pt") | {"width": 7})
    with pytest.raises(AltDiffusionError, match=r"gives features \[6\], and width is 7"):
        FeatureNetwork(wrong, device="cpu").features(planes)
    plain = save_network(tmp_path / "plain.pt", Plain())
    with pytest.raises(AltDiffusionError, match="does not run with return_features=True"):
        FeatureNetwork(from_dict(NetworkConfig, plain), device="cpu").features(planes)
    fitting = from_dict(NetworkConfig, plain | {"form": "plain", "width": 3})
    assert FeatureNetwork(fitting, device="cpu").features(planes).tolist() == [[0, 0, 0]]
    (tmp_path / "text.pt").write_text("no archive")
    from hashlib import sha256

    other = plain | {"file": str(tmp_path / "text.pt"), "sha256": sha256(b"no archive").hexdigest()}
    with pytest.raises(AltDiffusionError, match="cannot be opened as TorchScript"):
        FeatureNetwork(from_dict(NetworkConfig, other), device="cpu")


@pytest.mark.parametrize("kind", ["clip", "altclip"])
def test_a_judge_embeds_as_its_own_model_does(kind: str, tmp_path: Path) -> None:
    from transformers import AltCLIPModel, AutoTokenizer, CLIPModel

    config = from_dict(JudgeConfig, save_judge(tmp_path / kind, ["a", "red", "cat"], kind=kind))
    judge = Judge(config, device="cpu", dtype="float32")
    texts = ["a cat", "a red cat", "red"]
    made = judge.embed_texts(texts)
    model: Any = (CLIPModel if kind == "clip" else AltCLIPModel).from_pretrained(tmp_path / kind).eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / kind)(texts, padding=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    with torch.no_grad():
        pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        whole = model(pixel_values=pixels, **tokens)
    np.testing.assert_allclose(made, whole.text_embeds, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8))
    square = judge.pixels(rgb)
    embedded = judge.embed_images(square[None].copy())
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    planes = torch.from_numpy(((np.asarray(rgb) / 255 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = model(pixel_values=planes, **tokens).image_embeds
    np.testing.assert_allclose(embedded, expected, atol=1e-5)


def test_a_judge_knows_which_texts_it_cannot_read(tmp_path: Path) -> None:
    tokens = JudgeTokens(from_dict(JudgeConfig, save_judge(tmp_path, ["a", "cat"])))
    assert tokens.unread(["a cat", "une chat", "cat", "猫"]) == [1, 3]


def test_wrong_judges_are_refused(tmp_path: Path) -> None:
    settings = save_judge(tmp_path, ["a"])
    with pytest.raises(AltDiffusionError, match="has 16 token positions, and text_tokens is 77"):
        Judge(from_dict(JudgeConfig, settings | {"text_tokens": 77}), device="cpu", dtype="float32")
    with pytest.raises(AltDiffusionError, match=f"has digest {settings['digest']}, not"):
        Judge(from_dict(JudgeConfig, settings | {"digest": "0" * 64}), device="cpu", dtype="float32")


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    network = {"file": "n.pt", "sha256": "0" * 64, "resize": "clean"}
    judge = {"folder": "j", "digest": "0" * 64, "languages": ["de"]}
    for tree, problem in (
        ({"measures": ["fid"], "reference": "real"}, "network.* is missing, which fid need"),
        ({"measures": ["fid"], "network": network}, "reference.* is missing, which fid need"),
        ({"measures": ["is"], "network": {**network, "form": "plain"}}, "gives no class probabilities"),
        ({"measures": ["is"], "network": network, "judge": judge}, "judge.* is given, but no measure needs it"),
        ({"measures": ["clip_sim_english"], "judge": judge}, "lacks en"),
        (
            {"measures": ["is", "clip_sim_native"], "network": network, "judge": {**judge, "languages": ["xx"]}},
            "choices",
        ),
        ({"measures": ["inception"]}, "is not one of the choices"),
    ):
        with pytest.raises(AltDiffusionError, match=problem):
            from_dict(MeasuresConfig, tree)
