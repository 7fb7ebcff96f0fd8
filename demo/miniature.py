"""The recipe in miniature: the long table, its ablations and sweeps, with an honest judge: `make miniature`.

128 concepts in 18 languages. Three languages and some names of the others never have an image, and some names are in
no text at all. The stages and what they must reach are in jobs/configs/miniature/. The ablations change one thing
each:

    attn2        stage 1 trains all of cross-attention, as the released code does, not K and V alone
    reordered    the whole UNet first, then K and V, then guidance
    direct       no alignment: the whole UNet for as many steps, which is more compute, then guidance
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from demo.line import MINIATURE, MODELS, Line
from demo.line import main as run_line

_START = f"train.start={{base: {MODELS}/base-en, text_encoder: {MODELS}/text-encoder-m18}}"
_ABLATIONS = ("attn2", "reordered", "direct")


def run(line: Line) -> None:
    """Run the line, the ablations and the sweep, and print where the results are."""
    line.prepare()
    line.curate()
    line.job("encode", "encode")
    for stage in ("alignment", "quality", "guidance"):
        line.job("train", stage)
    line.job("generate", "generate")
    line.job("evaluate", "evaluate")
    _ablate(line)
    line.job("evaluate", "evaluate-sweep")
    line.show_lineage("mini-guidance")
    line.show_table()
    out = line.scale.out
    print(f"\nImage grid      {out / 'grid.png'}")
    for what in ("evaluation", "ablations", "sweep"):
        print(f"{what.capitalize():15} {out / what}.md, {what}.html")
    line.show_took()


def _ablate(line: Line) -> None:
    """Train the ablations, without samples, and judge their last states on the same cases."""

    def train(title: str, config: str, *own: str) -> None:
        line.job("train", config, f"train.run=mini-{title}", "samples=null", *own, title=title)

    train("attn2", "alignment", "train.trainable=attn2")
    train("reordered-quality", "quality", _START)
    train("reordered-alignment", "alignment", "train.start={checkpoint: mini-reordered-quality}")
    train("reordered", "guidance", "train.start={checkpoint: mini-reordered-alignment}")
    train("direct-quality", "quality", _START, "train.steps=800")
    train("direct", "guidance", "train.start={checkpoint: mini-direct-quality}")
    states = [{"name": name, "model": {"run": f"mini-{name}"}} for name in ("alignment", "guidance", *_ABLATIONS)]
    line.job(
        *("evaluate", "evaluate", "name=mini-ablations", "require=null", f"states={json.dumps(states)}"),
        f"output={line.scale.out / 'ablations'}",
        title="ablations",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the miniature; return an exit status as the jobs do."""
    return run_line(run, MINIATURE, "python -m demo.miniature", "The recipe in miniature.", argv)


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    from jobs.harness import leave

    leave(main())
