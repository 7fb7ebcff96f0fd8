"""What can be wrong with measures before an image is drawn, found from the config, the cases and the lake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from altdiffusion.errors import AltDiffusionError
from altdiffusion.evaluation.measures.frechet import check_rows
from altdiffusion.evaluation.measures.judge_tokens import JudgeTokens
from altdiffusion.evaluation.measures.network import FeatureNetwork
from altdiffusion.evaluation.measures.settings import REFERENCE_MEASURES, JudgeConfig, MeasuresConfig
from altdiffusion.evaluation.measures.texts import Text, check_english, read_texts
from altdiffusion.languages import BY_CODE, language_of
from altdiffusion.storage.dataset import Lake, Version

_NATIVE = ("clip_sim_native", "retrieval")


def check_measures(
    config: MeasuresConfig, lake: Lake, cases: str, images: Mapping[str, int] | None = None
) -> list[str]:
    """Return lines on what will be measured.

    Args:
        cases: URI of the cases file, which every state draws.
        images: number of images by language, where they are drawn already; None expects one image per prompt.

    Raises:
        AltDiffusionError: the first of these that does not hold: files are there and have the pinned digests, the
            feature network gives what is configured, texts have an English text and are in languages that the judge
            reads, the reference holds images, and there are enough images per language.
    """
    texts = read_texts(cases)
    rows = dict(images) if images is not None else _rows_by_language(text.language for text in texts.values())
    lines = [f"measures  {', '.join(config.measures)}; {min(rows.values()):,} images or more per language"]
    if config.network is not None:
        network = FeatureNetwork(config.network, device="cpu")
        network.features(np.zeros((1, 3, config.network.side, config.network.side), np.float32))
        lines.append(
            f"network  {config.network.sha256[:12]}, {config.network.width:,} features, {config.network.resize}"
        )
        if "fid" in config.measures:
            for code, count in rows.items():
                check_rows(f"images in {code}", count, config.network.width)
    if config.judge is not None:
        _check_texts(config, config.judge, cases, texts)
        lines.append(f"judge  {config.judge.digest[:12]}, reads {', '.join(config.judge.languages)}")
    if "retrieval" in config.measures:
        _check_ranks(config, texts, rows)
    if config.reference is not None:
        lines.append(_check_reference(config, lake.version(config.reference), rows))
    return lines


def _check_texts(config: MeasuresConfig, judge: JudgeConfig, cases: str, texts: Mapping[str, Text]) -> None:
    tokens = JudgeTokens(judge)
    wanted = list[str]()
    if "clip_sim_english" in config.measures:
        check_english(cases, texts)
        wanted += [str(text.english) for text in texts.values()]
    native = [measure for measure in _NATIVE if measure in config.measures]
    if native:
        unread = sorted({text.language for text in texts.values()} - set(judge.languages), key=_order)
        if unread:
            raise AltDiffusionError(
                f"judge {judge.folder}",
                f"reads {', '.join(judge.languages)}, and {' and '.join(native)} need {', '.join(unread)} as well",
                "give a multilingual judge (AltCLIP), or leave these measures or languages out",
            )
        wanted += [text.prompt for text in texts.values()]
    distinct = list(dict.fromkeys(wanted))
    strange = tokens.unread(distinct)
    if strange:
        raise AltDiffusionError(
            f"judge {judge.folder}",
            f"does not know a word in {len(strange):,} of {len(distinct):,} texts, e.g. {distinct[strange[0]]!r}",
            "give a judge whose tokenizer reads these languages",
        )


def _check_ranks(config: MeasuresConfig, texts: Mapping[str, Text], rows: Mapping[str, int]) -> None:
    """Refuse ranks that every image reaches."""
    prompts = _rows_by_language(text.language for text in texts.values() if text.language in rows)
    code = min(prompts, key=lambda code: prompts[code])
    compared = min(prompts[code], config.sample)
    if compared <= max(config.recall_at):
        raise AltDiffusionError(
            f"retrieval@{max(config.recall_at)} in {code}",
            f"would be 1 whatever is drawn, because it compares {compared:,} images",
            "lower recall_at, raise sample, or give more prompts",
        )


def _check_reference(config: MeasuresConfig, reference: Version, drawn: Mapping[str, int]) -> str:
    name = reference.ref.short
    if reference.manifest.kind != "images":
        raise AltDiffusionError(name, f"holds {reference.manifest.kind}, not images", "name a dataset of images")
    if not reference.rows:
        raise AltDiffusionError(name, "holds no images", "name a dataset with real images")
    compared = [measure for measure in config.measures if measure in REFERENCE_MEASURES]
    found = {code: count for code, count in reference.manifest.rows_by_language.items() if count}
    lacking = sorted(set(drawn) - set(found), key=_order) if config.reference_by_language else []
    if lacking:
        raise AltDiffusionError(
            name, f"holds no images in {', '.join(lacking)}", "leave these languages out, or compare with all images"
        )
    if config.network is not None and "fid" in config.measures:
        sets = {f"{name} in {code}": found[code] for code in drawn} if config.reference_by_language else {}
        for what, count in (sets or {name: reference.rows}).items():
            check_rows(what, count, config.network.width)
    per = "per language" if config.reference_by_language else "for every language"
    return f"reference  {name}, {reference.rows:,} images, {per}, for {', '.join(compared)}"


def _rows_by_language(languages: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for code in languages:
        counts[code] = counts.get(code, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: _order(item[0])))


def _order(tag: str) -> tuple[int, str]:
    """Return where a language is in tables: the eighteen first, in their order."""
    known = list(BY_CODE)
    base = language_of(tag)
    return (known.index(base) if base in known else len(known), tag)
