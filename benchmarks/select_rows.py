"""Select's rows per second and core, language identification included, against a bare loop of fastText's predict.

    python -m benchmarks.select_rows [--cache DIR] [--rows N] [--repeats N]

The rows: captions of CLDR's emoji names and keywords in the 18 languages and ten others, every caption another choice
of concept and keywords, as one LAION-shaped Parquet part (`laion-joined`). All filters are on and every row passes
them, so that every row's language is decided: filters that drop rows first would make it easier. Ours is the whole of
`SelectWork.run`: read, filter, clean, identify, split into buckets, write shards and rejects. The peer is
`model.predict(text + "\\n", 1, 0.0, "strict")` for each of the same captions, already in memory.

A caption's words repeat more here than on the web, and ours judges each different word of a unit once; so the same is
measured once more with the letters of every word shuffled, where hardly a word occurs twice.

One worker: CPU seconds of one process, ours and the peer in turn, medians. Two workers: wall-clock seconds of one and
of two processes that share the units and start together, in turn, medians; loading is not counted. The peer there is
two bare loops against one: what the machine gives at that moment.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from altdiffusion.curation.config import LanguageConfig, SelectConfig, SourceConfig
from altdiffusion.curation.links.select_work import SelectWork
from altdiffusion.curation.links.sources import plan_sources, scan_source
from altdiffusion.diffusion.pinned_files import local_pinned
from altdiffusion.execution.units import Unit
from altdiffusion.languages import CODES
from demo.concepts import OFF_TARGET, annotations
from demo.npm import default_cache

SELECT = SelectConfig(min_side=256, max_aspect=3.0, similarity_above=0.26, punsafe_below=0.5, pwatermark_below=0.8)
AT_LEAST, AIM, TWO_AT_LEAST = 0.6, 0.8, 1.7
UNITS = 4


def write_part(path: Path, cache: Path, rows: int, shuffled: bool = False) -> None:
    """Write a part of `rows` rows in random order, always the same; `shuffled` shuffles the letters of each word."""
    draw = random.Random(0)
    tables = {language: annotations(cache, language) for language in CODES + OFF_TARGET}
    characters = {language: sorted(names) for language, (names, _) in tables.items()}
    captions, labels = [], []

    def mixed(word: str) -> str:
        return "".join(draw.sample(word, len(word)))

    for _ in range(rows):
        language = draw.choice(CODES + OFF_TARGET)
        names, keywords = tables[language]
        character = draw.choice(characters[language])
        words = list(keywords[character])
        draw.shuffle(words)
        caption = ", ".join((names[character], *words[: draw.randint(1, max(len(words), 1))]))
        captions.append(" ".join(map(mixed, caption.split(" "))) if shuffled else caption)
        labels.append(language if draw.random() < 0.9 else draw.choice(CODES))
    columns = {
        "URL": pa.array(
            [f"https://img{draw.randrange(5000)}.example.com/{i:x}/{draw.getrandbits(96):x}.jpg" for i in range(rows)]
        ),
        "TEXT": pa.array(captions),
        "WIDTH": pa.array([draw.randint(400, 1200) for _ in range(rows)], pa.int32()),
        "HEIGHT": pa.array([draw.randint(400, 1200) for _ in range(rows)], pa.int32()),
        "similarity": pa.array([draw.uniform(0.27, 0.4) for _ in range(rows)]),
        "LANGUAGE": pa.array(labels),
        "hash": pa.array([draw.getrandbits(63) for _ in range(rows)], pa.int64()),
        "pwatermark": pa.array([draw.uniform(0, 0.7) for _ in range(rows)], pa.float32()),
        "punsafe": pa.array([draw.uniform(0, 0.4) for _ in range(rows)], pa.float32()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=-(-rows // UNITS), compression="snappy")


def plan(part: Path) -> tuple[SourceConfig, list[Unit]]:
    source = SourceConfig(name="benchmark", uri=str(part), preset="laion-joined")
    return source, plan_sources([scan_source(source)])


def worker(source: SourceConfig, lake: Path) -> SelectWork:
    work = SelectWork(lake=str(lake), dataset="candidates", source=source, select=SELECT, language=LanguageConfig())
    work.setup()
    return work


def cpu(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def bare_loop(captions: Sequence[str]) -> Callable[[], None]:
    """Return the peer: fastText's own predict, one caption after the other."""
    import fasttext.FastText

    fasttext.FastText.eprint = lambda *_, **__: None  # it prints a line on every load
    config = LanguageConfig()
    model = fasttext.FastText.load_model(local_pinned(config.model, config.model_sha256)).f

    def run() -> None:
        for text in captions:
            model.predict(text + "\n", 1, 0.0, "strict")

    return run


def one_worker(part: Path, scratch: Path, repeats: int) -> tuple[float, float, int]:
    """Return the CPU seconds of ours and of the peer, and the number of rows."""
    source, units = plan(part)
    captions = pq.read_table(part, columns=["TEXT"])["TEXT"].to_pylist()
    bare = bare_loop(captions)
    ours, peer = [], []
    for repeat in range(repeats):
        work = worker(source, scratch / f"{part.stem}-{repeat}")
        ours.append(cpu(lambda work=work: [work.run(unit) for unit in units]))
        peer.append(cpu(bare))
    return statistics.median(ours), statistics.median(peer), len(captions)


def many_workers(part: Path, scratch: Path, repeats: int) -> dict[str, float]:
    """Return how many times as fast two workers are as one, on the clock: select's, and bare loops' as a control."""
    spawn = multiprocessing.get_context("spawn")
    seconds: dict[tuple[str, int], list[float]] = {}
    for repeat in range(repeats):
        for action, count in itertools.product(("select", "bare"), (1, 2)):
            gate = spawn.Barrier(count + 1)
            lake = scratch / f"many-{repeat}-{count}"
            shares = [(action, part, lake, number, count, gate) for number in range(count)]
            children = [spawn.Process(target=_work_share, args=share) for share in shares]
            for child in children:
                child.start()
            gate.wait()
            start = time.perf_counter()
            gate.wait()
            seconds.setdefault((action, count), []).append(time.perf_counter() - start)
            for child in children:
                child.join()
    median = {key: statistics.median(values) for key, values in seconds.items()}
    return {action: median[action, 1] / median[action, 2] for action in ("select", "bare")}


def _work_share(action: str, part: Path, lake: Path, number: int, count: int, gate: Any) -> None:
    source, units = plan(part)
    if action == "bare":
        captions = pq.read_table(part, columns=["TEXT"])["TEXT"].to_pylist()
        run = bare_loop(captions[number::count])
    else:
        work = worker(source, lake)

        def run() -> None:
            for unit in units[number::count]:
                work.run(unit)

    gate.wait()
    run()
    gate.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="the demo's cache folder")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        part, shuffled = scratch / "part-00000.parquet", scratch / "part-00001.parquet"
        write_part(part, arguments.cache, arguments.rows)
        write_part(shuffled, arguments.cache, arguments.rows, shuffled=True)
        print(f"{'':44}{'ours':>10}{'peer':>10}{'ratio':>7}   to reach")
        reach = f"{AT_LEAST} of the bare loop, aim {AIM}"
        for name, which in (("real words", part), ("hardly a word twice", shuffled)):
            ours, peer, rows = one_worker(which, scratch, arguments.repeats)
            print_row(f"select, rows / CPU-second, {name}", rows / ours, rows / peer, reach)
        times = many_workers(part, scratch, arguments.repeats)
        print_row("two workers, times one", times["select"], times["bare"], f"{TWO_AT_LEAST} times one", digits=2)


def print_row(name: str, ours: float, peer: float, reach: str, digits: int = 0) -> None:
    print(f"{name:44}{ours:>10,.{digits}f}{peer:>10,.{digits}f}{ours / peer:>7.2f}   {reach}", flush=True)


if __name__ == "__main__":
    main()
