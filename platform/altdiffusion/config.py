"""Strict YAML to frozen dataclasses, dotted overrides, and the fingerprint of a config.

A config is a frozen, keyword-only dataclass. What the YAML may hold is what the dataclass declares: an unknown key,
a duplicate key, a wrong type or an invalid value (constraints.py) is an error that names file, key, value and remedy.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from altdiffusion.config_keys import OPERATIONAL, example_of, meant
from altdiffusion.constraints import Invalid
from altdiffusion.credentials import HIDDEN, holds_credential, is_secret_name, redact
from altdiffusion.errors import AltDiffusionError

T = TypeVar("T")
MAX_CONFIG_BYTES = 1 << 20
_ADDED = "added"
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")


def operational(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING) -> Any:
    """Return a field that changes where or how fast, never what: it is left out of the fingerprint."""
    metadata = {OPERATIONAL: True}
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def added(default: Any) -> Any:
    """Return a field that earlier versions did not have, and whose default is what they did.

    It enters the fingerprint only where it has another value, so that configs written before it keep theirs.
    """
    return dataclasses.field(default=default, metadata={_ADDED: True})


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases (an alias bomb is small on disk and huge in memory)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):  # type: ignore[no-untyped-call]
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text (quote it)", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads no / off / on as booleans: `language: no` would be False. Only true and false are booleans here.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


@dataclasses.dataclass(frozen=True)
class _Place:
    """The position of a value, for error messages."""

    file: str
    key: str
    root: type
    """The class of the whole config."""

    def child(self, name: str) -> _Place:
        return _Place(self.file, f"{self.key}.{name}" if self.key else name, self.root)

    def error(self, value: Any, problem: str, remedy: str) -> AltDiffusionError:
        what = f"config {self.file}" + (f", key {self.key}" if self.key else "")
        shown = redact(repr(_masked(self.key, value)))
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        return AltDiffusionError(what, f"value {shown} {problem}", remedy)


def _masked(key: str, value: Any) -> Any:
    """Return the value for a message; what has the name of a credential is hidden."""
    if any(is_secret_name(part) for part in key.split(".")):
        return HIDDEN
    if isinstance(value, Mapping):
        return {name: _masked(str(name), item) for name, item in value.items()}
    return [_masked("", item) for item in value] if isinstance(value, list) else value


def load_config(cls: type[T], path: str, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file into the dataclass `cls`.

    Args:
        cls: a frozen dataclass.
        path: local file path (job configs travel with the code, so they are always local).
        overrides: `dotted.key=value` texts, as typed on the command line; a value is read as YAML.

    Raises:
        AltDiffusionError: the file, a key, a value or an override is wrong.
    """
    return from_dict(cls, load_tree(path, overrides), path)


def load_tree(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the keys and values of a YAML file with overrides, whatever config it is; see load_config."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise AltDiffusionError(
            f"config {path}", f"cannot be read ({error.strerror})", "give the path of a YAML file"
        ) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise AltDiffusionError(f"config {path}", "is larger than 1 MiB", "a config holds settings, not data")
    tree = _parse_yaml(raw, path)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise AltDiffusionError(f"config {path}", "is not a mapping of keys to values", "write `key: value` lines")
    for override in overrides:
        _apply_override(tree, override, path)
    return tree


def from_dict(cls: type[T], tree: Mapping[str, Any], file: str = "<values>") -> T:
    """Return the same from a plain dict, e.g. the config stored in a manifest."""
    return typing.cast(T, _build(cls, tree, _Place(file, "", cls)))


def resolved(config: Any) -> dict[str, Any]:
    """Return the whole config as plain JSON-able values, defaults filled in."""
    plain: dict[str, Any] = _plain(config, keep_operational=True)
    return plain


def semantic(config: Any) -> dict[str, Any]:
    """Return the part of `resolved` that decides the result: the fingerprint covers it and manifests store it."""
    plain: dict[str, Any] = _plain(config, keep_operational=False)
    return plain


def fingerprint(config: Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of everything in the config that is not operational."""
    text = json.dumps(semantic(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def to_yaml(config: Any) -> str:
    """Return the resolved config as YAML, for `--dry-run` and for people."""
    text: str = yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True, width=110)
    return text


def _plain(value: Any, *, keep_operational: bool) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), keep_operational=keep_operational)
            for field in dataclasses.fields(value)
            if keep_operational or _decides(field, getattr(value, field.name))
        }
    if isinstance(value, tuple):
        return [_plain(item, keep_operational=keep_operational) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item, keep_operational=keep_operational) for key, item in value.items()}
    return value


def _decides(field: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether a field's value enters the fingerprint."""
    if field.metadata.get(OPERATIONAL):
        return False
    return not field.metadata.get(_ADDED) or value != field.default


def _parse_yaml(raw: bytes | str, path: str) -> Any:
    try:
        return yaml.load(raw, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"config {path}" + (f", line {mark.line + 1}" if mark else "")
        if "\\t" in str(getattr(error, "problem", "")):
            raise AltDiffusionError(
                where, "begins with a tab, and YAML is indented with spaces", "replace the tab by spaces"
            ) from error
        raise AltDiffusionError(
            where, f"is not valid YAML here ({getattr(error, 'problem', None) or error})", "fix that line"
        ) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise AltDiffusionError(
            f"config {path}", f"is not readable YAML ({error})", "write plain UTF-8 YAML"
        ) from error


def _apply_override(tree: dict[str, Any], override: str, path: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise AltDiffusionError(f"override {override!r}", "is not of the form key=value", "write e.g. train.steps=100")
    node: Any = tree
    *parents, last = key.strip().split(".")
    for name in parents:
        node = node.setdefault(name, {}) if isinstance(node, dict) else node[_index(node, name, override)]
        if not isinstance(node, (dict, list)):
            raise AltDiffusionError(f"override {key}", f"{name!r} holds a value, not a section", "check the key")
    value = _parse_yaml(text, f"override {key}")
    if isinstance(node, dict):
        node[last] = value
    else:
        node[_index(node, last, override)] = value


def _index(node: list[Any], name: str, override: str) -> int:
    """Return a position in a list, as in `datasets.0.name=latents`."""
    if not name.isdigit() or int(name) >= len(node):
        raise AltDiffusionError(
            f"override {override.partition('=')[0]}",
            f"{name!r} is not a position in a list of {len(node)}",
            f"use 0 to {len(node) - 1}",
        )
    return int(name)


def _build(hint: Any, value: Any, place: _Place) -> Any:
    origin = get_origin(hint)
    if origin is Annotated:  # constraints are checked by the dataclass itself (constraints.Checked)
        return _build(get_args(hint)[0], value, place)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build_dataclass(hint, value, place)
    if origin in (Union, types.UnionType):
        return _build_union(hint, value, place)
    if origin is Literal:
        if value not in get_args(hint) or isinstance(value, bool) != any(isinstance(a, bool) for a in get_args(hint)):
            close = difflib.get_close_matches(str(value), [str(a) for a in get_args(hint)], n=1)
            hint_text = f" (did you mean {close[0]}?)" if close else ""
            raise place.error(value, "is not one of the choices", f"use one of {list(get_args(hint))}{hint_text}")
        return value
    if origin is tuple:
        (item, *rest) = get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise place.error(value, "is not a list", "write [a, b, ...]")
        if rest == [Ellipsis]:
            return tuple(_build(item, v, place.child(str(i))) for i, v in enumerate(value))
        hints = get_args(hint)
        if len(value) != len(hints):
            raise place.error(value, f"has {len(value)} items", f"give exactly {len(hints)}")
        return tuple(_build(h, v, place.child(str(i))) for i, (h, v) in enumerate(zip(hints, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise place.error(value, "is not a mapping", "write key: value lines")
        return {key: _build(get_args(hint)[1], item, place.child(key)) for key, item in value.items()}
    return _build_scalar(hint, value, place)


def _build_union(hint: Any, value: Any, place: _Place) -> Any:
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    if value is None and type(None) in get_args(hint):
        return None
    if len(choices) == 1:
        return _build(choices[0], value, place)
    errors = []
    for choice in choices:
        try:
            return _build(choice, value, place)
        except AltDiffusionError as error:
            errors.append(error)
    last = errors[-1]
    words = [str(word) for choice in choices if get_origin(choice) is Literal for word in get_args(choice)]
    raise AltDiffusionError(last.what, last.problem, ", or ".join([last.remedy, *words])) if words else last


def _build_scalar(hint: Any, value: Any, place: _Place) -> Any:
    if hint is Any:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**63:
        raise place.error("a whole number", "has more than 64 bits", "write a smaller one")
    if hint is float:
        if isinstance(value, str) and _NUMBER.fullmatch(value):  # YAML 1.1 reads 1e-4 as text
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise place.error(value, "is not a finite number", "write a number like 0.5 or 1e-4")
        return float(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise place.error(value, "is not a whole number", "write a number like 512")
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise place.error(value, "is not a switch", "write true or false")
        return value
    if hint is str:
        if not isinstance(value, str):
            raise place.error(
                value,
                "is not text",
                f"put it in quotes: '{value}'" if isinstance(value, int | float) else "give a text",
            )
        if holds_credential(value):
            raise place.error(
                value,
                "holds a credential, which would be stored and shown",
                "leave it out and set the service's own variables (AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_PASSWORD); in "
                "tracking.uri ${env:NAME} or ${file:PATH} may replace it",
            )
        return value
    raise TypeError(f"{place.key}: config fields of type {hint!r} are not supported")


def _where(place: _Place) -> str:
    return f"under {place.key}" if place.key else "at the top"


def _add(cls: type, name: str, place: _Place) -> str:
    """Return the remedy for a key that is missing: for a section, its shortest form."""
    shown = example_of(cls, name)
    separator = "\n" if "\n" in shown else " "
    return f"add it {_where(place)}, e.g.{separator}{shown}"


def _build_dataclass(cls: type, value: Any, place: _Place) -> Any:
    if dataclasses.is_dataclass(value):
        return value
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise place.error(value, "is not a section", f"write the keys of {cls.__name__} below {place.key or 'the top'}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            found = meant(place.root, place.child(key).key)
            remedy = f"did you mean {' or '.join(found)}? " if found else ""
            raise place.child(key).error(
                value[key], "has an unknown key", f"{remedy}known keys {_where(place)}: {', '.join(fields)}"
            )
    hints = typing.get_type_hints(cls, include_extras=True)
    built: dict[str, Any] = {}
    for name, field in fields.items():
        if name in value:
            built[name] = _build(hints[name], value[name], place.child(name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise AltDiffusionError(
                f"config {place.file}, key {place.child(name).key}", "is missing", _add(cls, name, place)
            )
    try:
        return cls(**built)
    except Invalid as wrong:
        raise place.child(wrong.key).error(wrong.value, wrong.problem, wrong.remedy) from wrong
