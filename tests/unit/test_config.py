"""The config loader: what it accepts, and that every mistake names file, key, value and remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altdiffusion.config import fingerprint, from_dict, load_config, operational, resolved, to_yaml
from altdiffusion.constraints import Checked, at_least
from altdiffusion.errors import AltDiffusionError
from pipelines.common import JobConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    mode: Literal["kv", "attn2"] = "kv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer(Checked):
    name: str
    steps: Annotated[int, at_least(1, "raise it")] = 10
    note: str | None = None
    languages: tuple[str, ...] = ("en",)
    inner: Inner = field(default_factory=Inner)
    weights: dict[str, float] = field(default_factory=dict)
    verbose: bool = False
    folder: str = operational("out")


def load(tmp_path: Path, text: str, *overrides: str) -> Outer:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(Outer, str(path), overrides)


def test_reads_values_defaults_and_overrides(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "name: x\nlanguages: [no, en]\ninner: {learning_rate: 1e-3}\n",
        "steps=7",
        "inner.mode=attn2",
        "weights.en=0.5",
    )
    assert config.languages == ("no", "en")  # `no` is Norwegian, not false
    assert config.inner.learning_rate == 1e-3  # YAML 1.1 alone would give text
    assert (config.steps, config.inner.mode, config.weights) == (7, "attn2", {"en": 0.5})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name: x\ninner: {learing_rate: 1}", ["inner.learing_rate", "unknown key", "learning_rate"]),
        ("name: x\nsteps: many", ["steps", "'many'", "whole number"]),
        ("name: x\nsteps: 1.5", ["steps", "1.5", "whole number"]),
        ("name: x\nsteps: true", ["steps", "True"]),
        ("name: x\nsteps: 0", ["steps", "0", "at least 1", "raise it"]),
        ("name: x\ninner: {mode: kq}", ["inner.mode", "'kq'", "kv"]),
        ("name: x\ninner: {betas: [0.9]}", ["inner.betas", "exactly 2"]),
        ("name: x\ninner: {learning_rate: .nan}", ["inner.learning_rate", "finite"]),
        ("name: x\ninner: {learning_rate: 1" + "0" * 400 + "}", ["inner.learning_rate", "64 bits"]),
        ("name: x\nname: y", ["line 2", "duplicate key 'name'"]),
        ("name: &a x\nnote: *a", ["aliases"]),
        ("name: !!python/object/apply:os.system [id]", ["not valid YAML"]),
        ("name: [", ["not valid YAML"]),
        ("- name", ["not a mapping"]),
        ("steps: 2", ["name", "is missing"]),
        ("name: 12", ["name", "12", "quotes"]),
        ("name: x\nlanguages: en", ["languages", "not a list"]),
        ("name: x\nverbose: 1", ["verbose", "true or false"]),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(AltDiffusionError) as caught:
        load(tmp_path, text)
    for part in ["job.yaml", "Remedy", *parts]:
        assert part in str(caught.value)


def test_file_errors(tmp_path: Path) -> None:
    with pytest.raises(AltDiffusionError, match="cannot be read"):
        load_config(Outer, str(tmp_path / "absent.yaml"))
    with pytest.raises(AltDiffusionError, match="1 MiB"):
        load(tmp_path, "name: " + "x" * (1 << 20))
    for override in ("steps", "=3", "name.x=1", "languages.1=th", "languages.x=th"):
        with pytest.raises(AltDiffusionError, match="override"):
            load(tmp_path, "name: x\nlanguages: [en]", override)
    assert load(tmp_path, "name: x\nlanguages: [en, th]", "languages.1=ko").languages == ("en", "ko")


def test_fingerprint_covers_what_decides_the_result_and_nothing_else(tmp_path: Path) -> None:
    base = load(tmp_path, "name: x")
    assert fingerprint(base) == fingerprint(load(tmp_path, "folder: elsewhere\nname: x\nsteps: 10"))
    assert fingerprint(base) != fingerprint(load(tmp_path, "name: x\nsteps: 11"))
    assert fingerprint(base) != fingerprint(load(tmp_path, "name: x\ninner: {betas: [0.9, 0.99]}"))


@given(
    steps=st.integers(1, 10**9),
    rate=st.floats(0, 1e6, allow_nan=False),
    note=st.one_of(st.none(), st.text(st.characters(blacklist_categories=("Cs", "Cc")))),
)
def test_resolved_round_trips(steps: int, rate: float, note: str | None) -> None:
    config = Outer(name="x", steps=steps, note=note, inner=Inner(learning_rate=rate))
    again = from_dict(Outer, resolved(config))
    assert again == config
    assert fingerprint(again) == fingerprint(config)


def test_yaml_round_trips(tmp_path: Path) -> None:
    config = load(tmp_path, "name: x\nnote: 'null'\nlanguages: [th, 'no']")
    assert load(tmp_path, to_yaml(config)) == config


def test_system_metrics_need_psutil_and_leave_the_fingerprint_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"lake": "lake", "tracking": {"system_metrics": True}}
    with_it, without = (from_dict(JobConfig, one, "job.yaml") for one in (tree, {"lake": "lake"}))
    assert with_it.tracking.system_metrics and fingerprint(with_it) == fingerprint(without)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AltDiffusionError, match=r"tracking.system_metrics.* needs psutil"):
        from_dict(JobConfig, tree, "job.yaml")
