"""The keys of a config: which ones there are, what they mean, and which one a wrong key may have meant.

A key is dotted, as in overrides: `train.optimizer.lr`. Its meaning is the text that follows the field in its class.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from altdiffusion.constraints import Constraint, Each

OPERATIONAL = "operational"
"""Key of a field's metadata: its value does not decide the result."""

PEERS = {
    # diffusers' and kohya's training scripts
    "learning_rate": "optimizer.lr",
    "unet_lr": "optimizer.lr",
    "lr_rate": "optimizer.lr",
    "lr_warmup_steps": "optimizer.warmup_steps",
    "adam_beta1": "optimizer.betas",
    "adam_weight_decay": "optimizer.weight_decay",
    "adam_epsilon": "optimizer.eps",
    "optimizer_type": "optimizer.kind",
    "use_8bit_adam": "optimizer.kind",
    "use_ema": "optimizer.ema_decay",
    "train_batch_size": "micro_batch",
    "batch_size": "global_batch",
    "max_train_steps": "steps",
    "max_train_epochs": "steps",
    "num_train_epochs": "steps",
    "gradient_accumulation_steps": "micro_batch",
    "gradient_checkpointing": "compute.gradient_checkpointing",
    "mixed_precision": "precision",
    "pretrained_model_name_or_path": "start.base",
    "pretrained_model": "start.base",
    "checkpointing_steps": "checkpoint_every",
    "save_every_n_steps": "checkpoint_every",
    "checkpoints_total_limit": "keep_last",
    "snr_gamma": "objective.min_snr_gamma",
    "prediction_type": "objective.prediction",
    "network_dim": "lora.rank",
    "rank": "lora.rank",
    "network_alpha": "lora.alpha",
    "random_flip": "flip",
    "caption_dropout_rate": "caption_drop",
    "proportion_empty_prompts": "caption_drop",
    "enable_xformers_memory_efficient_attention": "compute.attention",
    "train_data_dir": "datasets",
    "dataset_name": "datasets",
    "validation_prompt": "samples.prompts",
    "sample_prompts": "samples.prompts",
    "validation_steps": "validation.every",
    "output_dir": "lake",
    "output_folder": "lake",
    "report_to": "tracking.uri",
    "logging_dir": "tensorboard",
    "num_workers": "workers",
    # img2dataset
    "thread_count": "download.threads",
    "processes_count": "workers.max",
    "url_list": "sources",
    "resize_mode": "download.resize_mode",
    "image_size": "download.image_size",
    "max_aspect_ratio": "download.max_aspect",
    "user_agent_token": "download.user_agent",
    "timeout": "download.deadline_s",
    # generation
    "num_inference_steps": "steps",
    "cfg_scale": "guidance_scale",
    "scheduler": "sampler",
    "model_path": "model.folder",
}
"""What other trainers and crawlers call a setting, and the end of its key here."""

_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_mb": "MiB", "_gib": "GiB", "_bytes": "bytes", "_days": "days"}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a config."""

    path: str
    owner: type
    field: dataclasses.Field[Any]
    hint: Any
    """Its type, without Annotated."""
    constraints: tuple[Constraint | Each, ...]

    @property
    def section(self) -> type | None:
        """The dataclass of the keys below it, if it is a section or a list of sections."""
        return _section(self.hint)

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        missing = dataclasses.MISSING
        return self.field.default is missing and self.field.default_factory is missing


def keys(cls: type) -> tuple[Key, ...]:
    """Return all keys of a config's class, those of sections after the section."""
    return tuple(_keys(cls, "", ()))


def top_keys(cls: type) -> list[str]:
    """Return the names of a class's own keys."""
    return [field.name for field in dataclasses.fields(cls)]


def _keys(cls: type, prefix: str, above: tuple[type, ...]) -> Iterator[Key]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        constraints: tuple[Constraint | Each, ...] = ()
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            constraints = tuple(extra for extra in extras if isinstance(extra, Constraint | Each))
        key = Key(path=prefix + field.name, owner=cls, field=field, hint=hint, constraints=constraints)
        yield key
        inner = key.section
        if inner is not None and inner not in above:
            yield from _keys(inner, f"{key.path}.", (*above, cls))


def _section(hint: Any) -> type | None:
    if get_origin(hint) is Annotated:
        return _section(get_args(hint)[0])
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    if get_origin(hint) in (Union, types.UnionType, tuple):
        found = [_section(choice) for choice in get_args(hint) if choice not in (type(None), Ellipsis)]
        return found[0] if len(found) == 1 else None
    return None


def meant(cls: type, wrong: str) -> list[str]:
    """Return the keys of a config that an unknown key may have meant, the likeliest first, at most three.

    Args:
        wrong: dotted; its last part is compared with the names of all keys, and with what other programs call them.
    """
    there = {key.path: key for key in keys(cls)}
    parent, _, name = wrong.rpartition(".")
    name = name.lower().replace("-", "_")
    found: list[str] = []
    for peer in difflib.get_close_matches(name, PEERS, n=1, cutoff=0.85):
        end = PEERS[peer]
        found += sorted((path for path in there if f".{path}".endswith(f".{end}")), key=lambda p: _far(p, parent))[:1]
    names = sorted({path.rpartition(".")[2] for path in there})
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.75)
    close += [other for other in names if len(name) > 3 and other.startswith(f"{name}_")]
    for other in close:
        found += sorted((path for path in there if path.rpartition(".")[2] == other), key=lambda p: _far(p, parent))[:1]
    return list(dict.fromkeys(found))[:3]


def _far(path: str, parent: str) -> tuple[int, int]:
    """Return how far a key is from a section: parts that differ, and its depth."""
    parts, own = path.split(".")[:-1], parent.split(".") if parent else []
    same = sum(1 for _ in _same(parts, own))
    return len(parts) + len(own) - 2 * same, len(parts)


def _same(first: list[str], second: list[str]) -> Iterator[str]:
    for one, other in zip(first, second, strict=False):
        if one != other:
            return
        yield one


def example_of(cls: type, name: str) -> str:
    """Return the shortest form of one key of a class as YAML: the keys that have no default, with values to replace."""
    key = next(key for key in keys(cls) if key.path == name)
    inner = key.section
    if inner is None:
        return f"{name}: {_placeholder(key.hint)}"
    needed = [one for one in keys(inner) if "." not in one.path and one.required]
    if not needed:
        return f"{name}: {{}}"
    if get_origin(key.hint) is tuple:
        return f"{name}: [{{{', '.join(example_of(inner, one.path) for one in needed)}}}]"
    lines = [line for one in needed for line in example_of(inner, one.path).splitlines()]
    return "\n".join([f"{name}:", *(f"  {line}" for line in lines)])


def _placeholder(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _placeholder(arguments[0])
    if origin is Literal:
        return str(arguments[0])
    if origin in (Union, types.UnionType):
        return _placeholder(next(choice for choice in arguments if choice is not type(None)))
    if origin is tuple:
        return f"[{_placeholder(arguments[0])}]"
    return {int: "1", float: "1.0", bool: "true", str: "NAME"}.get(hint, "{}")


def explain(cls: type, path: str) -> list[str]:
    """Return lines on a key: meaning, type, unit, default, what it may hold, and what depends on it.

    Raises:
        KeyError: there is no such key.
    """
    key = next((key for key in keys(cls) if key.path == path), None)
    if key is None:
        raise KeyError(path)
    lines = [path]
    lines += textwrap.wrap(_meaning(key), 96, initial_indent="  ", subsequent_indent="  ")
    facts = {"type": _type_text(key.hint)}
    unit = next((unit for end, unit in _UNITS.items() if key.field.name.endswith(end)), None)
    if unit:
        facts["unit"] = unit
    facts["default"] = _default_text(key)
    if key.constraints:
        facts["holds"] = "; ".join(map(_holds, key.constraints))
    above = (one for one in keys(cls) if f"{path}.".startswith(f"{one.path}."))  # the key itself included
    decides = not any(one.field.metadata.get(OPERATIONAL) for one in above)
    facts["decides"] = "the result (part of the fingerprint)" if decides else "only where, how fast or what is kept"
    if key.section is not None:
        facts["keys"] = ", ".join(one.path for one in keys(key.section) if "." not in one.path)
    lines += [
        line
        for name, value in facts.items()
        for line in textwrap.wrap(value, 96, initial_indent=f"  {name:<8} ", subsequent_indent=" " * 11)
    ]
    return lines


def _holds(constraint: Constraint | Each) -> str:
    if isinstance(constraint, Each):
        return f"for each item: {_holds(constraint.item)}"
    problem = constraint.problem
    return problem if problem.startswith("must") else f"is refused if it {problem}"


def _type_text(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _type_text(one) for one in arguments)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return f"mapping to {_type_text(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "section"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(hint, str(hint))


def _default_text(key: Key) -> str:
    if key.required:
        return "none: it must be given"
    if key.field.default_factory is not dataclasses.MISSING or dataclasses.is_dataclass(key.field.default):
        return "that of its keys"
    value: Any = key.field.default
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _meaning(key: Key) -> str:
    """Return the text after a field, or the summary of its section's class."""
    owner = next(base for base in key.owner.__mro__ if key.field.name in inspect.get_annotations(base))
    text = _texts(owner).get(key.field.name, "")
    if not text and key.section is not None:
        text = inspect.getdoc(key.section) or ""
    return " ".join(text.split())


@functools.cache
def _texts(cls: Any) -> dict[str, str]:
    """Return the texts after the fields of a class, by field."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for before, node in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(before, ast.AnnAssign)
            and isinstance(before.target, ast.Name)
            and isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found[before.target.id] = node.value.value
    return found
