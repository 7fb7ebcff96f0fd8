"""`--model REF` of the verbs that draw: a run, an export, a model folder or a model of the hub."""

from __future__ import annotations

import argparse
import re
from typing import Any

from altdiffusion.diffusion.hub import is_hub_id
from altdiffusion.errors import AltDiffusionError
from altdiffusion.storage import files

_RUN = re.compile(r"(?:checkpoint:)?(?P<run>[A-Za-z0-9][A-Za-z0-9._\-]*)(?:/step-(?P<step>\d+))?(?:@[0-9a-f]+)?")


def model_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--base-configs`."""
    parser.add_argument(
        "--model",
        metavar="REF",
        required=True,
        help="a run of the lake (its newest export) or run/step-N; a folder in diffusers' layout; a .safetensors file "
        "of A1111 or ComfyUI, with --base-configs; or hf://owner/name@COMMIT",
    )
    parser.add_argument(
        "--base-configs",
        metavar="REF",
        help="configs, tokenizer and scheduler of a single file: a folder in diffusers' layout of the model it was "
        "trained from, or hf://owner/name@COMMIT; its weights are not read",
    )


def model_settings(text: str, lake: str, configs: str | None = None) -> dict[str, Any]:
    """Return the settings (`ModelConfig`) of the model that a person named.

    A checkpoint that has no export yet is exported.

    Args:
        configs: what `--base-configs` names.

    Raises:
        AltDiffusionError: nothing has this name.
    """
    folder = text.rstrip("/")
    if configs is not None:
        return {"folder": folder, "base_configs": configs}
    if is_hub_id(folder) or files.exists(files.join(folder, "model_index.json")):
        return {"folder": folder}
    named = _RUN.fullmatch(folder)
    if named is None:
        return {"folder": folder}  # which fails with what is wrong with the folder
    run, step = named["run"], int(named["step"]) if named["step"] else None
    exports = files.list_names(files.join(lake, "exports", run))
    if not any(re.fullmatch(r"step-\d+", name) and step in (None, int(name[5:])) for name in exports):
        _export(lake, run, step, text)
    return {"run": run, "step": step}


def _export(lake: str, run: str, step: int | None, text: str) -> None:
    from altdiffusion.training.checkpoints.format import known_runs, run_names
    from altdiffusion.training.exports.export import export_checkpoint

    if run not in run_names(lake):
        raise AltDiffusionError(
            f"model {text}",
            f"is neither a folder with a model_index.json nor a run of the lake {lake}",
            f"give a folder, hf://owner/name@<commit>, or a run; runs here: {known_runs(lake)}",
        )
    print(f"exports {run}", flush=True)
    export_checkpoint(lake, run, step=step)
