"""Aliases in MLflow: the tag `altdiffusion.alias` of the LoggedModel that has one; the lake holds the truth."""

from __future__ import annotations

from altdiffusion.lineage.mlflow_view import find_model
from altdiffusion.lineage.tracking import DEFAULT_EXPERIMENT, Tracking, answering, connect
from altdiffusion.storage import files
from altdiffusion.storage.aliases import list_aliases, read_alias


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
