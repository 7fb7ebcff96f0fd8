"""MLflow's registered models: one per family of runs, whose versions are checkpoints that a stage ended with.

A family is what the runs of a recipe share: `m18-alignment` and `m18-quality`, named after their stages, are of the
family `m18`. The alias `candidate` is the checkpoint with which the family's newest stage ended, exported. All aliases
that `altdiffusion promote` gives, such as `champion`, are in the registry too; the lake holds these, so one checkpoint
of a lake has each. A version names the LoggedModel of its checkpoint, which has the metrics and the model card.
"""

from __future__ import annotations

import re
from typing import Any

from altdiffusion.lineage.graph import Node
from altdiffusion.lineage.tracking import Tracking
from altdiffusion.storage import files

CANDIDATE = "candidate"
REF = "lineage.ref"


def family(run: str, stage: str) -> str:
    """Return the family of a run: its name without its stage at the end; a run named otherwise is its own family."""
    return run.removesuffix(f"-{stage}") or run


def set_alias(tracking: Tracking, lake: str, node: Node, model_id: str, alias: str) -> None:
    """Give an alias of a family to a checkpoint, which becomes a version of the registered model if it is not one.

    Args:
        model_id: id of the checkpoint's LoggedModel.
    """
    name = _name(tracking, node)
    version = _version(tracking, lake, name, node, model_id)
    if tracking.client.get_registered_model(name).aliases.get(alias) != version:
        tracking.client.set_registered_model_alias(name, alias, version)


def take_alias(tracking: Tracking, alias: str, *, but: Node | None) -> None:
    """Take an alias from all registered models of the experiment, other than that of a checkpoint's family."""
    kept = None if but is None else _name(tracking, but)
    experiment = _experiment(tracking)
    for model in tracking.client.search_registered_models(filter_string=f"name LIKE '{experiment}-%'"):
        ours = model.tags.get("altdiffusion.experiment") == tracking.experiment_id
        if ours and model.name != kept and alias in model.aliases:
            tracking.client.delete_registered_model_alias(model.name, alias)


def _experiment(tracking: Tracking) -> str:
    name = str(tracking.client.get_experiment(tracking.experiment_id).name)
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def _name(tracking: Tracking, node: Node) -> str:
    run, stage = str(node.facts.get("run") or node.name), str(node.facts.get("stage", ""))
    return f"{_experiment(tracking)}-{re.sub(r'[^A-Za-z0-9_.-]', '-', family(run, stage))}"


def _version(tracking: Tracking, lake: str, name: str, node: Node, model_id: str) -> str:
    """Return the version of a checkpoint; create it, and the registered model, if there is none."""
    client = tracking.client
    if not client.search_registered_models(filter_string=f"name = '{name}'", max_results=1):
        client.create_registered_model(
            name,
            tags={"altdiffusion.experiment": tracking.experiment_id},
            description="Checkpoints with which the stages of a recipe ended. `candidate` is the newest, `champion` "
            "the one that `altdiffusion promote` chose.",
        )
    found = client.search_model_versions(f"name = '{name}' AND tags.`{REF}` = '{node.ref}'")
    if found:
        return str(found[0].version)
    model = client.get_logged_model(model_id)
    made = client.create_model_version(
        name,
        source=model.artifact_location,
        run_id=model.source_run_id,
        model_id=model_id,
        tags={REF: node.ref, "lineage.export": files.join(lake, "exports", node.name)},
        description=_note(tracking, node, model),
    )
    return str(made.version)


def _note(tracking: Tracking, node: Node, model: Any) -> str:
    page = f"#/experiments/{tracking.experiment_id}/models/{model.model_id}?workflowType=machine_learning"
    return (
        f"[Metrics, data and model card of {node.name}]({page})\n\n"
        f'Load: `DiffusionPipeline.from_pretrained("LAKE/exports/{node.name}")`'
    )
