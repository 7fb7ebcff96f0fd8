"""Prompts of more tokens than the UNet was trained with: what the encoder reads of them, against the encoder called by
hand, and that prompts of one window are not affected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.generate_work import generation_units
from altdiffusion.generation.model import resolve_model
from altdiffusion.generation.prompt_windows import PromptWindows
from altdiffusion.generation.prompts import read_prompts
from altdiffusion.storage.dataset import Lake
from pipelines.generate import opened, suits
from tests import generation_lake, training_lake

T = training_lake.TOKENS
LONG = "red bird on a tree"  # 18 tokens, one per letter and word start


def encoder(positions: int) -> Any:
    """Return a small XLM-R encoder that reads so many tokens."""
    torch.manual_seed(0)
    config = training_lake.bundle().text_encoder.config.to_dict() | {"max_position_embeddings": positions + 2}
    return AltCLIPTextModel(AltCLIPTextConfig(**config)).eval()


def by_hand(text_encoder: Any, ids: list[int]) -> torch.Tensor:
    """Return the context of ids that are padded with 1, which are masked."""
    tensor = torch.tensor([ids])
    with torch.no_grad():
        context: torch.Tensor = text_encoder(input_ids=tensor, attention_mask=(tensor != 1).long()).last_hidden_state
    return context


def test_an_encoder_with_more_positions_reads_one_sequence() -> None:
    tokenizer, text_encoder = training_lake.tokenizer(), encoder(20)
    windows = PromptWindows(tokenizer, text_encoder, 3)
    assert windows.one_sequence and [windows.positions(number) for number in (1, 2, 3)] == [8, 16, 20]
    ids = tokenizer(LONG, verbose=False).input_ids
    assert windows.of(["cat", "a red bird", LONG]) == [1, 2, 3] and len(ids) > 20
    with torch.no_grad():
        context = windows.encode([LONG, "cat"], 3, torch.device("cpu"))
        short = windows.encode(["cat"], 1, torch.device("cpu"))
    torch.testing.assert_close(context[:1], by_hand(text_encoder, [*ids[:19], ids[-1]]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short, by_hand(text_encoder, tokenizer("cat", padding="max_length").input_ids))
    reading = windows.read([LONG, "a red bird"])
    assert reading.tokens.tolist()[0] == len(ids) and reading.truncated.tolist() == [True, False]
    assert LONG.endswith(reading.unread[0])


def test_an_encoder_without_more_positions_reads_windows_cut_between_words() -> None:
    tokenizer, text_encoder = training_lake.tokenizer(), encoder(T)
    windows = PromptWindows(tokenizer, text_encoder, 3)
    assert not windows.one_sequence and windows.positions(3) == 3 * T
    text = "red bird moon"  # 4, 5 and 5 tokens; 6 have room in a window
    assert windows.of([text, "red", "", "red bird"]) == [3, 1, 1, 2]
    each = [tokenizer(word, padding="max_length").input_ids for word in text.split()]
    with torch.no_grad():
        context = windows.encode([text], 3, torch.device("cpu"))
        padded = windows.encode(["red"], 2, torch.device("cpu"))
    wanted = torch.cat([by_hand(text_encoder, ids) for ids in each], 1)
    torch.testing.assert_close(context, wanted, rtol=1e-5, atol=1e-6)
    empty = by_hand(text_encoder, tokenizer("", padding="max_length").input_ids)
    torch.testing.assert_close(padded, torch.cat((by_hand(text_encoder, each[0]), empty), 1), rtol=1e-5, atol=1e-6)
    reading = windows.read([text, f"{text} sun", "abcdefghijklmnopqrstuvwxyz"])
    assert reading.unread[0] == "" and reading.unread[1] == "sun"
    assert reading.unread[2] == "rstuvwxyz"  # a word longer than a window: 1 + 5, 6 and 6 of its letters are read
    assert windows.of(["abcdefghijklmnopqrstuvwxyz"]) == [3]


def drawn(lake: str, **changes: Any) -> dict[str, dict[str, Any]]:
    name = "-".join(str(value) for value in changes.values()) or "plain"
    version = generation_lake.generate(
        lake, generation_lake.config(lake, file_record=False, **changes), dataset=f"d{name}"
    )
    return {row["id"]: row for row in version.read().to_pylist()}


def lake_of(tmp_path: Path, prompts: list[str], positions: int) -> str:
    lake = generation_lake.make_lake(tmp_path, prompts=len(prompts))
    file = Path(lake) / "prompts.jsonl"
    rows = [
        json.loads(line) | {"prompt": text} for line, text in zip(file.read_text().splitlines(), prompts, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bundle = training_lake.bundle().with_text_encoder(encoder(positions), training_lake.tokenizer())
    models.save_bundle(bundle, Path(lake) / "models" / "base")
    return lake


@pytest.mark.parametrize("positions", [T, 20])
def test_a_prompt_of_one_window_is_drawn_as_without_the_setting(tmp_path: Path, positions: int) -> None:
    lake = lake_of(tmp_path, ["cat", "red bird", "sun", "red bind"], positions)
    one, two = drawn(lake), drawn(lake, prompt_windows=2)
    assert [one[name]["image"] == two[name]["image"] for name in ("p0", "p1", "p2", "p3")] == [True, False, True, False]
    assert [row["truncated"] for row in one.values()] == [False, True, False, True]
    assert not any(row["truncated"] for row in two.values())


def test_windows_past_the_encoders_positions_are_refused(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, ["cat"], 20)
    config = generation_lake.config(lake, prompt_windows=4)
    prompts = generation_lake.import_prompts(lake, config)
    problem = r"prompt_windows 4: is 32 tokens in windows of 8, and the text encoder has 20 positions.* at most 3"
    with pytest.raises(AltDiffusionError, match=problem):
        generation_units(Lake(lake).version(prompts.ref), resolve_model(config.model, lake), config)


def test_a_dry_run_names_prompts_of_several_windows(tmp_path: Path) -> None:
    lake = lake_of(tmp_path, ["cat", "red bird", LONG], 20)
    config = generation_lake.config(lake, prompt_windows=3)
    model, bundle = opened(config.model, lake, config.dtype)
    lines = suits(read_prompts(config.prompts), model, bundle, "prompts.jsonl", 3)
    assert lines[0] == (
        "prompt windows  2 prompts take 2 or more windows of 8 tokens: up to 20 positions, in one sequence of the "
        "encoder's 20"
    )
    assert lines[1].startswith("warning  1 prompt has more than the text encoder's 20 tokens; of p2")
