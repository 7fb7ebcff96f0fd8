"""The descriptions that people read on MLflow's pages: of the experiment, of runs and of models, as Markdown.

Paths are relative to the lake, so that a description is right in a copy of the lake too; the tags `lineage.uri` and
`lineage.export` hold the whole addresses.
"""

from __future__ import annotations

from collections.abc import Mapping

from altdiffusion.lineage import tree
from altdiffusion.lineage.graph import Node

EXPERIMENT = (
    "Runs of AltDiffusion's jobs, one per job across all its restarts. *Runs* compares their params and metrics; a "
    "run's *Artifacts* hold its whole config (`config.yaml`) and its lineage (`lineage.html`). *Models* are the "
    "checkpoints, in the order in which they were written.\n\nThe lake is the source of all of this: "
    "`altdiffusion lineage up REF --lake LAKE` answers for the long term, `altdiffusion lineage rebuild --lake LAKE` "
    "fills this store again."
)
_JOBS = {
    "curate": "Images with captions, from link to file: `report.html` in the artifacts shows what was kept and why.",
    "encode": "Latents and token ids of images, ready to train on.",
    "score": "Scores of images, to filter by.",
    "parallel": "Pairs of texts and their translations.",
    "train": "One stage of the training. *Model metrics* has the curves and the samples by step and language, *Models* "
    "the checkpoints.",
    "generate": "Images drawn from prompts.",
    "evaluate": "What judges find in the images of several models, by language.",
    "measure": "Measures of drawn images, by language.",
}


def run_note(job: str, name: str) -> str:
    """Return the description of a job's run."""
    about = _JOBS.get(job, f"A run of the job {job}.")
    show = f"altdiffusion lineage up {name} --lake LAKE" if job == "train" else "altdiffusion dataset list --lake LAKE"
    return f"{about}\n\nWhole config: `config.yaml`. In the terminal: `{show}`"


def model_note(
    node: Node, above: Mapping[str, Node], *, export: str = "", card: str = "", removed: bool = False, limit: int = 7500
) -> str:
    """Return the description of a checkpoint, model or export.

    Args:
        above: everything that it was made from, by reference.
        export: path of its export in the lake; empty if there is none yet.
        card: text of its model card.
        removed: whether the lake no longer holds the weights.
        limit: characters that MLflow stores.
    """
    parts = [f"**{node.kind} {node.name}** {_about(node)}", *_places(node, export, removed)]
    trained = [above[ref] for ref in node.parents if ref in above and above[ref].kind == "dataset"]
    if trained:
        parts.append("Trained on: " + "; ".join(f"{dataset.name} {_about(dataset)}" for dataset in trained))
    parts.append("### Made from\n\n" + tree.markdown_table({node.ref: node, **above}))
    if card:
        parts.append(f"### Model card\n\n{card}")
    text = "\n\n".join(parts)
    return text if len(text) <= limit else f"{text[: limit - 2]} …"


def _about(node: Node) -> str:
    """Return the short digest and the facts; MLflow makes a link of what follows an @."""
    return f"`{node.digest[:12]}` ({tree.describe(node)})"


def _places(node: Node, export: str, removed: bool) -> list[str]:
    if node.kind != "checkpoint":
        return []
    if removed:
        return [
            "The weights are **no longer in the lake**: the run keeps its newest checkpoints and every "
            "`train.keep_every` steps. What it was made from and its metrics stay here."
        ]
    run, step = str(node.facts.get("run", "")), int(node.facts.get("step", 0))
    lines = [f"Weights: `checkpoints/{node.name}` in the lake"]
    if export:
        lines.append(
            f'Load: `DiffusionPipeline.from_pretrained("LAKE/{export}")`, or draw: '
            f'`altdiffusion generate "a red apple" --model {run}/step-{step} --lake LAKE`'
        )
    else:
        lines.append(f"Not exported yet: `altdiffusion export {run} --step {step} --lake LAKE`")
    return lines
