"""Code in a model's folder is never run, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from altdiffusion.curation.config.score import ClassifierConfig
from altdiffusion.curation.encoding.caption_tokens import open_tokenizer
from altdiffusion.curation.scoring.classifier import Classifier
from altdiffusion.curation.scoring.embedding import ClipEmbedder
from altdiffusion.diffusion.models import load_bundle
from altdiffusion.errors import AltDiffusionError

ROOT = Path(__file__).resolve().parents[2]
TRAP = "from pathlib import Path\nPath({mark!r}).write_text('ran')\nclass Trap:\n    pass\nTrapConfig = Trap\n"


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose every config names code next to it, and a standard input at which a question would wait."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "trap.py").write_text(TRAP.format(mark=str(tmp_path / "ran")))
    kinds = ("AutoConfig", "AutoTokenizer", "AutoImageProcessor", "AutoModelForImageClassification", "AutoProcessor")
    auto_map = {kind: ["trap.Trap", None] if kind == "AutoTokenizer" else "trap.Trap" for kind in kinds}
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "trap", "auto_map": auto_map}))
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a person was asked"))
    return folder


def digest(folder: Path) -> str:
    from altdiffusion.diffusion.pinned_files import folder_digest

    return folder_digest(str(folder))


def test_no_loader_runs_code_of_a_folder(trapped: Path, tmp_path: Path) -> None:
    doors: list[Any] = [
        lambda: open_tokenizer(str(trapped), "x"),
        lambda: ClipEmbedder(str(trapped), digest(trapped), device="cpu", dtype="float32"),
        lambda: Classifier(
            ClassifierConfig(folder=str(trapped), digest=digest(trapped), label="x"), device="cpu", dtype="float32"
        ),
    ]
    for door in doors:
        with pytest.raises(AltDiffusionError, match=r"auto_map|cannot be opened"):
            door()
    assert not (tmp_path / "ran").exists()


def test_no_pipeline_of_a_folder_is_run(trapped: Path, tmp_path: Path) -> None:
    (trapped / "model_index.json").write_text(
        json.dumps({"_class_name": ["trap", "Trap"], "unet": ["trap", "Trap"], "vae": ["trap", "Trap"]})
    )
    with pytest.raises(AltDiffusionError):
        load_bundle(trapped)
    assert not (tmp_path / "ran").exists()


def test_every_auto_class_forbids_foreign_code() -> None:
    """Every call of an Auto class states that no code may come with the folder."""
    silent = []
    for path in [*(ROOT / "platform").rglob("*.py"), *(ROOT / "pipelines").glob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                open_ = name.endswith(".from_pretrained") and name.startswith(("Auto", "DiffusionPipeline", "kind"))
                words = {word.arg for word in node.keywords}
                if open_ and not name.startswith("AutoencoderKL") and not words & {"trust_remote_code", None}:
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not silent
