"""Scorers: the source's column, and a small random CLIP of projection width 768 with LAION's real linear head."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from altdiffusion.config import from_dict
from altdiffusion.curation.assets import folder_digest
from altdiffusion.curation.config import ScoreConfig
from altdiffusion.curation.score import (
    ClipAestheticScorer,
    SourceAestheticScorer,
    clip_pixels,
    load_head,
    make_scorer,
)
from altdiffusion.errors import AltDiffusionError

HEAD = Path(__file__).parents[3] / "shared" / "data" / "sa_0_4_vit_l_14_linear.pth"
needs_head = pytest.mark.skipif(
    not HEAD.is_file(),
    reason="LAION's sa_0_4_vit_l_14_linear.pth (4 kB) is not in ../shared/data beside the repository",
)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 100, "max_position_embeddings": 8},
        vision_config={**small, "image_size": 28, "patch_size": 14},
        projection_dim=768,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    return str(folder)


def fake_head(folder: Path) -> tuple[str, str]:
    """A head that reads the first component: (path, SHA-256)."""
    weight = torch.zeros(1, 768)
    weight[0, 0] = 1.0
    torch.save({"weight": weight, "bias": torch.tensor([3.0])}, folder / "head.pth")
    return str(folder / "head.pth"), hashlib.sha256((folder / "head.pth").read_bytes()).hexdigest()


def images(bodies: list[bytes]) -> pa.Table:
    return pa.table(
        {"image": pa.array(bodies, pa.binary()), "aesthetic": pa.array([7.5, None] * len(bodies))[: len(bodies)]}
    )


def test_the_source_scorer_passes_its_column_through() -> None:
    scorer = make_scorer(ScoreConfig())
    assert isinstance(scorer, SourceAestheticScorer)
    table = images([b"a", b"b", b"c"])
    assert scorer.score(table).to_pylist() == [7.5, None, 7.5]
    assert scorer.requires == ("aesthetic",) and scorer.provides == "aesthetic_score"


def test_the_score_is_the_head_on_the_normalised_embedding_of_the_whole_clip(clip: str, tmp_path: Path) -> None:
    from transformers import CLIPModel

    path, sha256 = fake_head(tmp_path)
    config = ScoreConfig(
        scorer="clip", clip=clip, clip_digest=folder_digest(clip), head=path, head_sha256=sha256, batch=2
    )
    bodies = [picture(seed) for seed in range(5)]
    found = make_scorer(config).score(images(bodies)).to_pylist()
    pixels = torch.from_numpy(np.stack([clip_pixels(body, 28) for body in bodies]))
    with torch.no_grad():
        model: Any = CLIPModel.from_pretrained(clip).eval()
        tokens = torch.ones(5, 4, dtype=torch.int64)
        embedding = model(input_ids=tokens, pixel_values=pixels).image_embeds  # CLIP's own forward normalises
    expected = 3.0 + embedding[:, 0]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(set(found)) == 5
    assert make_scorer(config).score(images([])).to_pylist() == []


@needs_head
def test_the_real_head_scores_through_a_small_clip(clip: str) -> None:
    config = ScoreConfig(scorer="clip", clip=clip, clip_digest=folder_digest(clip), head=str(HEAD))
    scorer = ClipAestheticScorer(config)
    head = load_head(str(HEAD), config.head_sha256, 768)
    assert float(head.bias[0]) == pytest.approx(3.52937, abs=1e-5)
    scores = scorer.score(images([picture(1), picture(2)])).to_pylist()
    limit = float(head.weight.norm())  # |w . e| <= |w| for a unit embedding
    assert all(abs(score - 3.52937) <= limit for score in scores) and scores[0] != scores[1]


def test_preprocessing_equals_clips_own() -> None:
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    for size in ((40, 30), (30, 40), (28, 28), (90, 31), (20, 20)):
        body = picture(3, size)
        given = processor(Image.open(io.BytesIO(body)), return_tensors="np")["pixel_values"][0]
        assert np.abs(clip_pixels(body, 28) - given).max() < 0.03, size  # two steps of 1/255 after normalisation


def test_other_weights_than_those_pinned_are_refused(clip: str, tmp_path: Path) -> None:
    path, sha256 = fake_head(tmp_path)
    with pytest.raises(AltDiffusionError, match=r"head\.pth: has SHA-256"):
        load_head(path, "0" * 64, 768)
    with pytest.raises(AltDiffusionError, match=r"not a weight \[1, 512\]"):
        load_head(path, sha256, 512)
    with pytest.raises(AltDiffusionError, match="has digest"):
        make_scorer(ScoreConfig(scorer="clip", clip=clip, clip_digest="0" * 64, head=path, head_sha256=sha256))
    with pytest.raises(AltDiffusionError, match="is not there"):
        load_head(str(tmp_path / "none.pth"), sha256, 768)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemError('code ran')",))


def test_no_code_runs_from_a_head_file(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    torch.save({"weight": Bomb()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_head(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), 768)


def test_a_clip_scorer_without_weights_is_a_config_error() -> None:
    with pytest.raises(AltDiffusionError, match=r"scorer.*clip needs its weights"):
        from_dict(ScoreConfig, {"scorer": "clip"})
