"""Readers of other people's bytes: whatever comes, they read it or refuse it in their documented way, and soon.

The longer runs are `python -m tests.fuzz TARGET --seconds N`; what they found is kept in tests/fuzz/cases.
"""

from __future__ import annotations

import gzip
import tarfile
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altdiffusion.config import from_dict
from altdiffusion.curation.language.clean import clean_captions
from altdiffusion.curation.own import tars
from altdiffusion.curation.web.robots import parse
from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation import prompt_files
from altdiffusion.generation.settings import PromptsConfig
from altdiffusion.storage import unpacking
from tests.fuzz import every
from tests.fuzz.targets import TARGETS

CASES = Path(__file__).parents[1] / "fuzz" / "cases"
EXAMPLES = {"image": 60, "lists": 60, "prompts": 60}
"""Examples of the slower targets; the others have more."""


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with some bytes replaced, removed, doubled or added, or any bytes at all."""
    data = bytearray(draw(st.one_of(st.sampled_from(seeds), st.binary(max_size=200))))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from((0, 1, 1, 2, 4, 16)))
        part = draw(
            st.one_of(
                st.binary(max_size=8), st.just(bytes(data[at : at + 40]) * 3), st.sampled_from((b"\xff" * 4, b"\0" * 4))
            )
        )
        data[at : at + length] = part
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_read_or_refused(name: str) -> None:
    target = TARGETS[name]
    seeds = list(target.seeds())
    for seed in seeds:
        target.read(seed)

    @settings(
        max_examples=EXAMPLES.get(name, 150), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(changed(seeds))
    def tried(data: bytes) -> None:
        target.read(data)

    tried()


def test_a_run_of_all_takes_every_target_and_a_run_that_fails_is_a_finding(tmp_path: Path) -> None:
    assert set(every.SHARES) == set(TARGETS)
    done = every.run_target("not-a-target", 1.0, str(tmp_path))  # with atheris or without: its exit status is 2
    assert done.finding == "exit status 2" and not done.executions


def test_what_was_a_finding_is_read_or_refused_now() -> None:
    for case in sorted(CASES.glob("*/*")):
        TARGETS[case.parent.name].read(case.read_bytes())


SLOW = (
    "<a ", "<!--", "<script>", "&amp;", "&#38;", "<a href='", "<b x=", " ", "\t", "\t en", "a\t", "Ã©", "Ð", "\x1b[",
    "<![CDATA[", "<!doctype ", "</b", "&lt;b&gt;", "\u200d", "é\u0301", "<a x=1 ", "\u202e",
)  # fmt: skip
"""What regular expressions that search for one of these could try again and again."""


@pytest.mark.parametrize("part", SLOW, ids=ascii)
def test_no_caption_takes_long_to_clean(part: str) -> None:
    """Markup is searched for in at most 16,384 characters (`clean`); the time must grow with the length alone."""
    text = (part * 8000)[:8000]
    began = time.process_time()
    clean_captions(pa.array([text + "<", part * 200_000]))
    assert time.process_time() - began < 3.0


def test_no_robots_txt_takes_long() -> None:
    rules = parse("User-agent: *\n" + "".join(f"Disallow: /{'*a' * 200}{number}$\n" for number in range(500)), "x")
    began = time.process_time()
    rules.allows("/" + "a" * 2000)
    assert time.process_time() - began < 3.0


@pytest.mark.parametrize("ending", ["txt.gz", "jsonl.gz", "csv.gz", "json.gz"])
def test_a_packed_bomb_is_refused_before_it_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(unpacking, "MOST_LINE", 1 << 20)
    monkeypatch.setattr(prompt_files, "_MOST_JSON", 1 << 20)
    file = tmp_path / f"p.{ending}"
    file.write_bytes(gzip.compress(b"prompt\n" + b"a" * (8 << 20)))
    config = from_dict(PromptsConfig, {"file": str(file)})
    tracemalloc.start()
    with pytest.raises(AltDiffusionError, match=r"has a line of over 16 MiB|holds more than 1 MiB"):
        list(prompt_files.read_chunks(config))
    assert tracemalloc.get_traced_memory()[1] < 6 << 20
    tracemalloc.stop()


def test_a_header_of_a_tar_file_is_no_bomb(tmp_path: Path) -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
    packed = tmp_path / "a.tar.gz"
    with gzip.open(packed, "wb") as file:
        file.write(info.tobuf() + bytes(1 << 20))
    with pytest.raises(AltDiffusionError, match="extended header of 67108864 bytes"):
        with tars._opened_tar(str(packed), packed.name) as (tar, _):
            list(tar)
