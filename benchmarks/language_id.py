"""How well captions' languages are told: precision and recall by language, and captions a second.

    python benchmarks/language_id.py [--cache DIR] [--tune]

Texts: CLDR's names and keywords of every emoji that has them in the 18 languages and in ten off-target ones, as many
texts a language. Thresholds are tuned on every other concept (`--tune` prints them) and all figures are
measured on the rest. `words` is a name with its keywords, `name` the name alone, `long` three concepts' words.
The source's labels are not used, so that the figures stand for captions that bring none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language import Guess, LanguageIdentifier, text_for_model
from altdiffusion.languages import CODES
from demo.concepts import OFF_TARGET, annotations
from demo.npm import default_cache

VARIANTS = ("name", "words", "long")
TARGET, FLOOR = 0.985, 0.955  # precision on the tuning half: mean, and of each language


def texts(cache: Path, variant: str) -> tuple[pa.Array, npt.NDArray[np.str_], npt.NDArray[np.intp]]:
    """Captions, their true languages, and the number of the concept each is about."""
    tables = {language: annotations(cache, language) for language in CODES + OFF_TARGET}
    chars = [char for char in tables["en"][0] if all(char in names for names, _ in tables.values())]
    captions, truth, concept = [], [], []
    for language, (names, keywords) in tables.items():
        words = [", ".join((names[char], *keywords[char])) for char in chars]
        for number, char in enumerate(chars):
            if variant == "name":
                captions.append(names[char])
            elif variant == "words":
                captions.append(words[number])
            else:
                captions.append(", ".join(words[(number + 2 * step) % len(words)] for step in range(3)))
            truth.append(language)
            concept.append(number)
    return pa.array(captions), np.array(truth), np.array(concept)


def tune(guess: Guess, short: npt.NDArray[np.float32], truth: npt.NDArray[np.str_]) -> dict[str, float]:
    """Thresholds with the highest mean recall at mean precision TARGET, no language's precision below FLOOR.

    The sum of recall + weight x precision separates by language; `weight` is found by bisection.
    """
    curves = {}
    for language in CODES:
        mine = guess.code == language
        order = np.argsort(-(guess.score - short)[mine], kind="stable")
        score, right = (guess.score - short)[mine][order], (truth == language)[mine][order]
        hits = np.cumsum(right)
        curves[language] = (score, hits / (truth == language).sum(), hits / np.arange(1, len(hits) + 1))
    low, high, best = 0.0, 1000.0, {}
    for _ in range(50):
        weight = (low + high) / 2
        chosen, precisions = {}, []
        for language, (score, recall, precision) in curves.items():
            value = np.where((precision >= FLOOR) & (recall >= 0.1), recall + weight * precision, precision - 1e6)
            at = int(value.argmax())
            chosen[language], precision_all = float(score[at]), precision[-1]
            if precision_all > 0.99:  # the letters are certain: no need to be strict
                chosen[language] = min(chosen[language], 0.5)
            precisions.append(precision[at])
        if np.mean(precisions) >= TARGET:
            high, best = weight, chosen
        else:
            low = weight
    return {language: round(min(max(value, 0.05), 0.95), 2) for language, value in best.items()}


def figures(
    language: npt.NDArray[np.object_], truth: npt.NDArray[np.str_]
) -> tuple[Mapping[str, float], Mapping[str, float], float]:
    """Recall and precision by language, and the share of off-target texts accepted."""
    recall = {code: float(np.mean(language[truth == code] == code)) for code in CODES}
    precision = {code: float(np.mean(truth[language == code] == code)) for code in CODES if (language == code).any()}
    off = np.isin(truth, OFF_TARGET)
    return recall, precision, float(np.mean(np.isin(language[off], CODES)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--tune", action="store_true", help="find the thresholds and print them")
    arguments = parser.parse_args()
    config = LanguageConfig()
    identifier = LanguageIdentifier(config)
    if arguments.tune:
        captions, truth, concept = texts(arguments.cache, "words")
        half = np.flatnonzero(concept % 2 == 0)
        guess = identifier.guess(captions.take(pa.array(half)))
        short = np.where(guess.letters < config.short_letters, config.short_penalty, 0.0).astype(np.float32)
        found = tune(guess, short, truth[half])
        print("THRESHOLDS =", found)
        config = LanguageConfig(thresholds=found)
        identifier.config = config
    columns, rates = {}, []
    for variant in VARIANTS:
        captions, truth, concept = texts(arguments.cache, variant)
        half = np.flatnonzero(concept % 2 == 1)
        captions, truth = captions.take(pa.array(half)), truth[half]
        start = time.process_time()
        language, _, _ = identifier.identify(captions, pa.nulls(len(captions), pa.string()))
        ours = len(captions) / (time.process_time() - start)
        cleaned = [text + "\n" for text in text_for_model(captions).to_pylist()]
        start = time.process_time()
        for text in cleaned:
            identifier._model.predict(text, 1, 0.0, "strict")
        rates.append((variant, ours, len(captions) / (time.process_time() - start)))
        columns[variant] = figures(np.array(language.to_pylist(), object), truth)
    print(f"{'recall / precision':20}" + "".join(f"{variant:>16}" for variant in VARIANTS))
    for code in CODES:
        cells = [f"{columns[v][0][code]:.2f} / {columns[v][1].get(code, float('nan')):.3f}" for v in VARIANTS]
        print(f"{code:20}" + "".join(f"{cell:>16}" for cell in cells))
    means = [f"{np.mean(list(r.values())):.3f} / {np.mean(list(p.values())):.3f}" for r, p, _ in columns.values()]
    print(f"{'mean':20}" + "".join(f"{cell:>16}" for cell in means))
    print(f"{'lowest precision':20}" + "".join(f"{min(p.values()):>16.3f}" for _, p, _ in columns.values()))
    print(f"{'off-target accepted':20}" + "".join(f"{off:>16.3f}" for _, _, off in columns.values()))
    print("captions per CPU-second: ours, a bare loop of fastText's predict, the ratio")
    for variant, ours, bare in rates:
        print(f"{variant:20}{ours:>16,.0f}{bare:>16,.0f}{ours / bare:>16.2f}")


if __name__ == "__main__":
    main()
