"""The values of a kept evaluation, for its page and its models' cards: checked, by quantity, state and language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from altdiffusion.storage.documents import Document

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Quantity:
    """How a quantity is named and printed."""

    title: str
    digits: int
    share: bool = False
    """Whether it is from 0 to 1 and shown in percent."""
    less: bool = False
    """Whether less of it is better."""

    def shown(self, number: float) -> str:
        """Return a value without its unit."""
        return f"{100 * number if self.share else number:.{self.digits}f}"

    @property
    def unit(self) -> str:
        """What follows a value."""
        return " %" if self.share else ""


_KNOWN = {
    ACCURACY: Quantity("Retrieval accuracy", 1, share=True),
    "fid": Quantity("FID", 2, less=True),
    "kid": Quantity("KID", 5, less=True),
    "cmmd": Quantity("CMMD", 3, less=True),
    "is": Quantity("Inception Score", 2),
    "clip_sim_english": Quantity("CLIP-Sim (English text)", 3),
    "clip_sim_native": Quantity("CLIP-Sim (prompt)", 3),
}


def quantity(name: str) -> Quantity:
    """Return how a measure is printed: one of `jobs.measure`, or ACCURACY."""
    head, _, rank = name.partition("@")
    if head == "retrieval":
        return Quantity(f"Retrieval R@{rank}", 1, share=True)
    return _KNOWN.get(name, Quantity(name, 3))


def rank(name: str) -> tuple[int, int, str]:
    """Return what quantities are sorted by: the order of the documentation, retrieval by its k."""
    head, _, k = name.partition("@")
    place = list(_KNOWN).index(name) if name in _KNOWN else len(_KNOWN)
    return place, int(k) if k.isdigit() and head == "retrieval" else 0, name


@dataclass(frozen=True, kw_only=True)
class Value:
    """A measured value."""

    value: float
    low: float | None
    """Lower end of its interval; None where it has none."""
    high: float | None
    images: int

    def text(self, of: Quantity) -> str:
        """Return it with its interval in brackets and its unit."""
        interval = "" if self.low is None or self.high is None else f" [{of.shown(self.low)}, {of.shown(self.high)}]"
        return f"{of.shown(self.value)}{of.unit}{interval}"


@dataclass(frozen=True, kw_only=True)
class ByLanguage:
    """One quantity of one state."""

    languages: Mapping[str, Value]
    mean: Value | None
    """Unweighted mean over languages, for ACCURACY over those other than English; None where it is not known."""


def accuracy_of(state: Document) -> ByLanguage | None:
    """Return the retrieval accuracy of a state of a report; None where no judge named its images."""
    if "languages" not in state.value:
        return None
    rates = state.object("languages").object("all")
    others = state.object("others")
    mean = _value(others.object("all"), "total", share=True) if "all" in others.value else None
    return ByLanguage(
        languages={code: _value(rates.object(code), "total", share=True) for code in rates.value}, mean=mean
    )


def measures_of(report: Document) -> Iterator[tuple[str, str, ByLanguage]]:
    """Yield (measure, state, values) of what an evaluation measured besides."""
    if "measures" not in report.value:
        return
    states = report.object("measures").object("states")
    for state in states.value:
        measured = states.object(state)
        for name in measured.value:
            one = measured.object(name)
            languages, share = one.object("languages"), quantity(name).share
            by = {code: _value(languages.object(code), "rows", share=share) for code in languages.value}
            yield name, state, ByLanguage(languages=by, mean=_value(one.object("mean"), "rows", share=share))


def facts_of(report: Document) -> dict[str, str]:
    """Return what decides the values besides the models, as an evaluation records it, by a name for people."""
    facts: dict[str, str] = {}
    if "protocol" in report.value:
        protocol = report.object("protocol")
        if "sampling" in protocol.value:
            sampling = protocol.object("sampling")
            facts["drawn with"] = (
                f"{sampling.text('sampler')}, {sampling.count('steps')} steps, guidance "
                f"{sampling.number('guidance_scale'):g}, {sampling.count('count', 1)} per prompt, "
                f"{sampling.text('dtype')} on {sampling.text('device')}"
            )
        for key, name in (("cases", "prompts, SHA-256"), ("images", "judge's images"), ("labels", "labels, SHA-256")):
            if key in protocol.value:
                several = isinstance(protocol.value[key], list)  # an evaluation may read several datasets of images
                facts[name] = ", ".join(protocol.texts(key)) if several else protocol.text(key)
    if "measures" in report.value:
        about = report.object("measures").object("about")
        facts |= {key: about.text(key) for key in about.value}
    return facts


def _value(rate: Document, images: str, *, share: bool) -> Value:
    value = rate.number("value")
    if share and not 0 <= value <= 1:
        raise rate.wrong("value", "a share from 0 to 1")
    bounded = rate.value.get("low") is not None and rate.value.get("high") is not None
    return Value(
        value=value,
        low=rate.number("low") if bounded else None,
        high=rate.number("high") if bounded else None,
        images=rate.count(images),
    )
