"""What each term for the token positions is worth: the demo's names in 18 languages, one small budget for all.

    python -m benchmarks.distillation --cache DIR [--updates 500] [--terms none mean positions readout] [--json FILE]

Each student begins with the same fresh weights, has one head, and learns the demo's captions in 18 languages from the
demo base's English encoder for `updates` updates of 48 pairs. Only the terms differ. Measured, for the
17 languages other than English:

- retrieval: how often the CLS vector of a concept's name is nearest, of the English names' EOS vectors, to its own;
  for names that were learned, and for those that no training text holds.
- effect missed: the base's frozen UNet reads both contexts. sum |eps(student) - eps(English)|^2 over
  sum |eps(English) - eps("")|^2, at states of its own drawings from English names (guidance 3): the share of what the
  text does to the image that the student's reading gets wrong. 1 is what no text at all scores. This is what
  `alignment` has to repair.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altdiffusion.config import from_dict
from altdiffusion.diffusion import models, noise
from altdiffusion.diffusion.teacher import eos_vectors
from altdiffusion.diffusion.text_encoder import encode_text, load_text_encoder, save_text_encoder, tokenize
from altdiffusion.languages import CODES
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.exports.export import export_checkpoint
from altdiffusion.training.launch_local import run_local
from demo import base, concepts, lexicon
from tests.distillation_lake import write_pairs

BATCH, CONCEPTS, STEPS, GUIDANCE, SEED = 48, 128, 10, 3.0, 7
STATES = (2, 5, 8)
"""Steps of the drawings at whose states the UNet predicts."""
DRAWN = 48
"""Concepts that are drawn."""
WEIGHTS = {"none": 0.0}


def pairs(cache: Path) -> list[tuple[str, str, str]]:
    """Return (English, translation, language) of the concepts' texts, without what must stay unseen; "" first."""
    entries = concepts.demo_concepts(CONCEPTS, cache)
    known = [(pair.english, pair.text, code) for code in CODES for pair in lexicon.pairs(entries, CONCEPTS, code)]
    return [("", "", "en"), *known]


@dataclass(kw_only=True)
class States:
    """The base's drawings on their way: K states of P concepts."""

    x: list[Tensor]
    """[P, C, H, W] each."""
    timesteps: list[int]
    wanted: list[Tensor]
    """The UNet's prediction for English there."""
    effect: float
    """sum |eps(English) - eps("")|^2."""


@torch.no_grad()
def draw(bundle: models.ModelBundle, english: Tensor, empty: Tensor) -> States:
    """Draw from the English contexts [P, T, D] and keep some states."""
    scheduler, unet = bundle.scheduler, bundle.unet
    scheduler.set_timesteps(STEPS)
    size = int(unet.config.sample_size)
    x = noise.keyed_normal(
        SEED, torch.arange(len(english)), noise.INITIAL_NOISE, (int(unet.config.in_channels), size, size)
    )
    kept = States(x=[], timesteps=[], wanted=[], effect=0.0)
    for number, t in enumerate(scheduler.timesteps):
        with_text = unet(x, t, encoder_hidden_states=english).sample
        without = unet(x, t, encoder_hidden_states=empty.expand(len(x), -1, -1)).sample
        if number in STATES:
            kept.x.append(x)
            kept.timesteps.append(int(t))
            kept.wanted.append(with_text)
            kept.effect += float((with_text - without).square().sum())
        x = scheduler.step(without + GUIDANCE * (with_text - without), t, x).prev_sample
    return kept


@torch.no_grad()
def measure(encoder: Any, bundle: models.ModelBundle, cache: Path, states: States) -> dict[str, float]:
    """Return the figures of one student."""
    chosen = concepts.demo_concepts(CONCEPTS, cache)
    reader = bundle.tokenizer
    ids = tokenize(reader, [concept.names["en"] for concept in chosen])
    english = eos_vectors(encode_text(bundle.text_encoder, ids, 1), ids, int(reader.eos_token_id))
    right: dict[bool, list[bool]] = {False: [], True: []}
    missed = effect = 0.0
    for language in CODES[1:]:
        context = encode_text(encoder, tokenize(reader, [concept.names[language] for concept in chosen]), 1)
        nearest = torch.cdist(context[:, 0], english).argmin(1)
        for number, concept in enumerate(chosen):
            right[concepts.unseen(concept, language)].append(int(nearest[number]) == number)
        for x, t, wanted in zip(states.x, states.timesteps, states.wanted, strict=True):
            answer = bundle.unet(x, t, encoder_hidden_states=context[:DRAWN]).sample
            missed += float((answer - wanted).square().sum())
        effect += states.effect
    return {
        "retrieval_learned": sum(right[False]) / len(right[False]),
        "retrieval_unseen": sum(right[True]) / len(right[True]),
        "effect_missed": missed / effect,
    }


def train(lake: str, term: str, weight: float, updates: int) -> tuple[str, float]:
    """Train a student; return its export and its CPU seconds."""
    name = f"{term}-{weight:g}".replace(".", "_")
    settings = {"token_weight": weight} | ({"token_term": term} if weight else {})
    tree = {
        "run": name, "key": "ablation", "stage": "distillation", "trainable": "all", "seed": SEED, "steps": updates,
        "start": {"base": f"{lake}/models/base-en", "text_encoder": f"{lake}/models/student"},
        "distillation": settings, "datasets": [{"name": "pairs"}], "global_batch": BATCH, "micro_batch": BATCH,
        "optimizer": {"lr": 1e-3, "warmup_steps": 50, "ema_decay": 0.99},
        "order": {"chunk_rows": 64, "window_chunks": 256}, "checkpoint_every": updates, "log_every": 50,
    }  # fmt: skip
    began = time.process_time()
    run_local(from_dict(TrainConfig, tree), lake)
    return export_checkpoint(lake, name), time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablation of the distillation's term for token positions.")
    parser.add_argument("--cache", type=Path, required=True, help="the demo's cache folder")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--terms", nargs="+", default=["none", "positions", "mean", "readout"], metavar="TERM[:WEIGHT]")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as lake:
        folders = base.unpack(Path(lake) / "models")
        bundle = models.load_bundle(folders[0])
        torch.manual_seed(SEED)
        student = models.build_text_encoder(models.text_config_demo(len(bundle.tokenizer)))
        save_text_encoder(student, bundle.tokenizer, Path(lake) / "models" / "student")
        write_pairs(lake, "pairs", pairs(given.cache), bundle.tokenizer, group_rows=64, shard_rows=1 << 16)
        drawn = [concept.names["en"] for concept in concepts.demo_concepts(CONCEPTS, given.cache)[:DRAWN]]
        contexts = encode_text(bundle.text_encoder, tokenize(bundle.tokenizer, ["", *drawn]), 1).detach()
        states = draw(bundle, contexts[1:], contexts[:1])
        found: dict[str, dict[str, float]] = {}
        for entry in given.terms:
            term, _, number = entry.partition(":")
            weight = float(number) if number else WEIGHTS.get(term, 1.0)
            folder, seconds = train(lake, term, weight, given.updates)
            figures = measure(load_text_encoder(folder)[0], bundle, given.cache, states)
            found[f"{term}, weight {weight:g}" if weight else "none (CLS against EOS alone)"] = {
                **figures,
                "cpu_seconds": seconds,
            }
            print(entry, figures, flush=True)
    print(f"\n{given.updates} updates of {BATCH} pairs each\n")
    print("| term for token positions | retrieval, learned | retrieval, unseen | effect missed | CPU seconds |")
    print("|---|---|---|---|---|")
    for name, row in found.items():
        seconds = f"{row['cpu_seconds']:.0f}"
        print(
            f"| {name} | {row['retrieval_learned']:.1%} | {row['retrieval_unseen']:.1%} | "
            f"{row['effect_missed']:.3f} | {seconds} |"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
