"""Aliases of a lake in MLflow: a tag `altdiffusion.alias.<alias>` of the LoggedModel, and one in the registry.

The lake holds the truth, except for `candidate`, which training jobs record.
"""

from __future__ import annotations

import logging

from altdiffusion.lineage import registry
from altdiffusion.lineage.graph import read_node
from altdiffusion.lineage.mlflow_view import find_model
from altdiffusion.lineage.tracking import DEFAULT_EXPERIMENT, Tracking, answering, connect, is_refusal
from altdiffusion.storage import files
from altdiffusion.storage.aliases import list_aliases, read_alias

log = logging.getLogger(__name__)


def show_aliases_in(lake: str, tracking_uri: str | None, experiment: str = DEFAULT_EXPERIMENT) -> bool:
    """Show a lake's aliases in MLflow, and return whether there is an MLflow.

    Args:
        tracking_uri: MLflow; None for the database in the lake, if there is one.

    Raises:
        AltDiffusionError: MLflow is not usable.
    """
    if tracking_uri is None and not (files.is_local(lake) and files.exists(files.join(lake, "mlflow.db"))):
        return False
    tracking = connect(tracking_uri, lake, experiment)
    with answering(tracking.uri):
        show_aliases(tracking, lake)
    return True


def show_aliases(tracking: Tracking, lake: str) -> None:
    """Give each alias of a lake to its model as a tag, and take it from all others."""
    for alias in list_aliases(lake):
        named, key = read_alias(lake, alias), f"altdiffusion.alias.{alias}"
        assert named is not None
        found = tracking.client.search_logged_models(
            experiment_ids=[tracking.experiment_id], filter_string=f"tags.`{key}` = 'true'"
        )
        model = find_model(tracking, str(named.ref))
        for other in found:
            if other.model_id != model:
                tracking.client.delete_logged_model_tag(other.model_id, key)
        if model is not None:
            tracking.client.set_logged_model_tags(model, {key: "true"})
        if alias != registry.CANDIDATE:
            _register(tracking, lake, str(named.ref), model, alias)


def _register(tracking: Tracking, lake: str, ref: str, model: str | None, alias: str) -> None:
    """Move an alias in MLflow's registry, which reserves a few names (`latest`, `v1`)."""
    node = None if model is None else read_node(lake, ref)
    try:
        if node is not None and model is not None:
            registry.set_alias(tracking, lake, node, model, alias)
        registry.take_alias(tracking, alias, but=node)
    except Exception as error:
        if not is_refusal(error):
            raise
        log.warning("alias %s is not in MLflow's registry (%s)", alias, error)
