"""`python -m deploy.render`: every cluster file from one set of values.

The files in the repository are made from deploy/values.yaml as it is; `--check` reports those that are not. A team
gives the values that differ in a file of its own, and renders into a folder of its own.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
TEMPLATES = DEPLOY / "templates"
HEADER = "Made by `python -m deploy.render` from deploy/values.yaml: change values there, and text in deploy/templates."


_NAME = re.compile(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?")
"""Names that AWS, Google Cloud and Kubernetes all take, with the longest ending that is put to one."""


class ValuesError(Exception):
    """Values that cannot be used; the message has the key, the problem and the remedy."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key that is given twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key} is given twice")
        return super().construct_mapping(node, deep)


def read_values(own: str | None = None) -> dict[str, Any]:
    """Return the values, with those of an own file in place of the repository's.

    Raises:
        ValuesError: the file is missing, is not YAML, or has a key or a type of value that the repository's has not.
    """
    values: dict[str, Any] = yaml.safe_load((DEPLOY / "values.yaml").read_text(encoding="utf-8"))
    if own is None:
        return values
    try:
        given = yaml.load(Path(own).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ValuesError(f"{own} cannot be read ({error.strerror}); check the path") from error
    except yaml.YAMLError as error:
        raise ValuesError(f"{own} is not YAML ({str(error).splitlines()[0]}); correct it") from error
    if not isinstance(given, dict):
        raise ValuesError(f"{own} is not a mapping of values; write keys of deploy/values.yaml")
    merged = _merged(values, given, "")
    if not _NAME.fullmatch(merged["name"]):
        raise ValuesError(f"name is {merged['name']!r}, but must be a-z, 0-9 and -, at most 20; write it like 'team-a'")
    return merged


def _merged(values: Mapping[str, Any], given: Mapping[str, Any], at: str) -> dict[str, Any]:
    merged = dict(values)
    for key, value in given.items():
        if key not in values and not at.endswith("resources."):
            near = difflib.get_close_matches(str(key), list(values), n=1)
            remedy = f"did you mean {at}{near[0]}?" if near else f"keys there: {', '.join(map(str, values))}"
            raise ValuesError(f"{at}{key} is not a key of deploy/values.yaml; {remedy}")
        known = values.get(key, 1)  # a resource of one's own is a number
        if _kind(known) != _kind(value):
            raise ValuesError(f"{at}{key} is {value!r}, but {_kind(known)} is needed; write it like {known!r}")
        if _kind(known) in ("a whole number", "a number") and value < 0:
            raise ValuesError(f"{at}{key} is {value}, but must not be negative; write it like {known!r}")
        merged[key] = _merged(known, value, f"{at}{key}.") if isinstance(known, dict) else value
    return merged


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = {int: "a whole number", float: "a number", dict: "a mapping", str: "a text", type(None): "nothing"}
    return kinds.get(type(value), type(value).__name__)


def rendered(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of every cluster file by its path below the repository.

    Raises:
        jinja2.UndefinedError: a template asks for a value that is missing.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(  # texts are YAML and shell, not HTML
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["inline"] = _inline
    files = {}
    for template in sorted(path for path in TEMPLATES.rglob("*.j2")):
        name = template.relative_to(TEMPLATES).as_posix()
        text = environment.get_template(name).render(**values, values=values, header=HEADER)
        path = name.removesuffix(".j2")
        files[path if path == "cluster.yaml" else f"deploy/{path}"] = text
    return files


def _inline(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def main() -> int:
    """Write the files, or with `--check` report those that are not as the values make them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.render", description=__doc__.splitlines()[0])
    parser.add_argument("--values", metavar="FILE", help="your values, in place of those of deploy/values.yaml")
    parser.add_argument("--to", metavar="FOLDER", help="where to write (default: the repository; needed with --values)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    arguments = parser.parse_args()
    if arguments.values and not arguments.to:
        parser.error("--values needs --to FOLDER: the repository's files are made from the repository's values")
    try:
        files = rendered(read_values(arguments.values))
    except (ValuesError, jinja2.UndefinedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    root = Path(arguments.to or ROOT)
    stale = [path for path, text in files.items() if not _is(root / path, text)]
    if arguments.check:
        for path in stale:
            print(f"{path} is not what the values make of it; run python -m deploy.render")
        return 1 if stale else 0
    for path in stale:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(files[path], encoding="utf-8")
        print(f"wrote {target}")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
