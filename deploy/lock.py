"""`python -m deploy.lock`: every package of the image, with its hash and licence, and as a bill of materials.

pip itself resolves the package with constraints.txt and reports the files, without installing anything. The lock is
of wheels for Linux on x86-64 and the Python that runs this: 3.11 for the image. Its torch is PyPI's, which has CUDA. A
lock with PyTorch's CPU build is made by naming its index:
    python -m deploy.lock --torch 'torch==2.13.0 --index-url URL' --to cpu
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("aws", "gcp", "s3", "server")
"""Extras of the package that deploy/Dockerfile installs."""
DEVELOPMENT = ("demo", "dev", "s3", "fuzz")
"""Extras that `make setup` and `make fuzz` install, at the versions of constraints.txt."""
TORCH = "torch===2.13.0"
"""PyPI's build, which has CUDA. `==` would also take 2.13.0+cpu, where an index or PIP_FIND_LINKS offers it."""
LOCK, LICENCES, BILL = "requirements.lock", "docs/licences.md", "deploy/sbom.cdx.json"


@dataclass(frozen=True)
class Package:
    """A package of the lock: name as the index writes it, version, SHA-256 of the wheel, licence as it states it."""

    name: str
    version: str
    sha256: str
    licence: str


def requirements(extras: Sequence[str]) -> list[str]:
    """Return what the package and some of its extras require besides torch, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return [one for one in wanted if not re.match(r"torch\b", one)]


def resolve(torch: str, extras: Sequence[str], *, wheels: bool) -> list[Package]:
    """Return the packages that pip would install, in the order of their names.

    Args:
        torch: what pip is asked for as torch, with options such as `--index-url`.
        extras: those of the package.
        wheels: take no source distribution, which would run code of its own when it is built.

    Raises:
        subprocess.CalledProcessError: pip finds no set of versions, or cannot reach its index.
    """
    if importlib.metadata.version("pip") < "25":  # older ones report no licence expressions
        raise SystemExit("error: pip is older than 25. Remedy: make lock, which takes one of its own")
    name, *options = shlex.split(torch)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report"]
        only = [*(("--only-binary", ":all:") if wheels else ()), "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, str(report), *only, *options, name, *requirements(extras)], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    packages = [
        Package(
            normal(one["metadata"]["name"]),
            one["metadata"]["version"],
            one["download_info"]["archive_info"]["hashes"]["sha256"],
            licence(one["metadata"]),
        )
        for one in found
    ]
    return sorted(packages, key=lambda one: one.name)


def unpinned(packages: Sequence[Package]) -> list[str]:
    """Return the lines that constraints.txt lacks for some packages."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if "==" in line and not line.startswith("#")}
    return [f"{one.name}=={one.version}" for one in packages if one.name not in pinned]


def licence(metadata: dict[str, Any]) -> str:
    """Return the licence that a package states: an expression, classifiers, or the first line of a text."""
    if metadata.get("license_expression"):
        return str(metadata["license_expression"])
    classes = [one for one in metadata.get("classifier", []) if one.startswith("License ::")]
    names = [one.rpartition(" :: ")[2] for one in classes if one != "License :: OSI Approved"]
    if names:
        return ", ".join(sorted(names))
    text = str(metadata.get("license") or "").strip()
    return text.splitlines()[0][:80] if text else "not stated"


def normal(name: str) -> str:
    """Return a package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lock_text(packages: list[Package], torch: str) -> str:
    """Return the lock, one package with the hash of its file per line."""
    python, made_with = ".".join(platform.python_version_tuple()[:2]), shlex.split(torch)[0].replace("===", "==")
    lines = [
        f"# Made by `python -m deploy.lock`, for Python {python} on Linux x86-64, with {made_with}.",
        "# pip install --require-hashes --no-deps -r requirements.lock",
        *(f"{one.name}=={one.version} --hash=sha256:{one.sha256}" for one in packages),
    ]
    return "\n".join(lines) + "\n"


def licences_text(packages: list[Package]) -> str:
    """Return the page of licences."""
    rows = [f"| {one.name} | {one.version} | {one.licence.replace('|', '/')} |" for one in packages]
    return "\n".join(
        [
            "# Licences",
            "",
            "The licences of the packages in `requirements.lock`, which is the image of `deploy/Dockerfile`, as",
            "the packages state them. `python -m deploy.lock` makes this page. This package itself is under",
            "Apache-2.0.",
            "",
            "| package | version | licence |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def bill_text(packages: list[Package]) -> str:
    """Return the bill of materials, CycloneDX 1.6 as JSON, without anything that differs between two runs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    root = _component(project["name"], project["version"], "Apache-2.0", "application")
    components = [
        _component(one.name, one.version, one.licence, "library")
        | {"hashes": [{"alg": "SHA-256", "content": one.sha256}]}
        for one in packages
    ]
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": root},
        "components": components,
        "dependencies": [{"ref": root["bom-ref"], "dependsOn": [one["bom-ref"] for one in components]}],
    }
    return json.dumps(bill, indent=1) + "\n"


def _component(name: str, version: str, licence: str, kind: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    known = [] if licence == "not stated" else [{"license": {"name": licence}}]
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": known}


def main() -> int:
    """Write the three files."""
    parser = argparse.ArgumentParser(prog="python -m deploy.lock", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torch", default=TORCH, metavar="'NAME==VERSION OPTIONS'", help=f"default: {TORCH}")
    parser.add_argument("--to", default=str(ROOT), metavar="FOLDER", help="default: the repository")
    arguments = parser.parse_args()
    try:
        packages = resolve(arguments.torch, EXTRAS, wheels=True)
        missing = unpinned([*packages, *resolve(arguments.torch, DEVELOPMENT, wheels=False)])
    except subprocess.CalledProcessError as error:
        print(f"error: pip ended with {error.returncode}. Remedy: read its lines above", file=sys.stderr)
        return 2
    if missing:
        print(f"error: constraints.txt lacks packages. Remedy: add {', '.join(sorted(set(missing)))}", file=sys.stderr)
        return 1
    texts = {
        LOCK: lock_text(packages, arguments.torch),
        LICENCES: licences_text(packages),
        BILL: bill_text(packages),
    }
    for name, text in texts.items():
        path = Path(arguments.to, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
