"""The lock, the constraints, the licences, the bill of materials and the advisories agree with each other."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from altdiffusion.doctor.versions import read_lock
from deploy.lock import (
    BILL,
    DEVELOPMENT,
    EXTRAS,
    LICENCES,
    LOCK,
    TORCH,
    Package,
    bill_text,
    licence,
    licences_text,
    lock_text,
    normal,
    unpinned,
)
from tests.deploy.clusters import ROOT

LINES = [line for line in (ROOT / LOCK).read_text().splitlines() if not line.startswith("#")]
ENTRY = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})")
FOUND = [ENTRY.fullmatch(line) for line in LINES]
PINS = {match[1]: (match[2], match[3]) for match in FOUND if match}


def test_every_package_has_a_version_and_a_hash_and_no_host() -> None:
    assert all(FOUND) and len(PINS) == len(LINES) > 150
    assert list(PINS) == sorted(PINS)
    for name in (LOCK, LICENCES, BILL):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://(?!cyclonedx\.org/schema)|files\.|/(?:root|home)/", text), name


def test_the_lock_has_the_versions_of_the_constraints() -> None:
    constraints = read_lock(ROOT / "constraints.txt")
    assert {name: version for name, (version, _) in PINS.items()} == {name: constraints.get(name) for name in PINS}


def test_the_constraints_have_every_package_that_the_project_installs() -> None:
    """Each extra counts with what it names, those of `make setup` also with all that comes along."""
    constraints = read_lock(ROOT / "constraints.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *(one for given in extras.values() for one in given)]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(constraints.get(normal(requirement.name), "missing")), text
    (setup,) = re.findall(
        r"-c constraints.txt -e '\.\[(.*)\]' *$", (ROOT / "Makefile").read_text().split("fuzz:")[0], re.M
    )
    assert [*setup.split(","), "fuzz"] == list(DEVELOPMENT)
    there = installed([*project["dependencies"], *(one for extra in setup.split(",") for one in extras[extra])])
    assert len(there) > 200 and sorted(there - constraints.keys()) == []


def installed(requirements: list[str]) -> set[str]:
    """Return the names of the packages here that some requirements bring along, their own included."""
    found: set[str] = set()
    todo, done = [Requirement(one) for one in requirements], set[str]()
    while todo:
        requirement = todo.pop()
        if str(requirement) in done:
            continue
        done.add(str(requirement))
        found.add(normal(requirement.name))
        try:
            brings = importlib.metadata.requires(requirement.name) or ()
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{requirement.name} is not installed. Remedy: make setup")
        for text in brings:
            brought = Requirement(text)
            if any(
                brought.marker is None or brought.marker.evaluate({"extra": one}) for one in ("", *requirement.extras)
            ):
                todo.append(brought)
    return found


def test_a_cpu_build_of_torch_is_never_locked_by_default() -> None:
    wanted = Requirement(TORCH).specifier
    assert wanted.contains(PINS["torch"][0]) and not wanted.contains(PINS["torch"][0] + "+cpu")


def test_a_package_without_a_version_is_named() -> None:
    packages = [Package(name, "9.1", "0" * 64, "MIT") for name in ("ray", "promql-parser", "not-there")]
    assert unpinned(packages) == ["not-there==9.1"]


def test_whatever_the_image_installs_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [
        *project["dependencies"],
        *(one for extra in EXTRAS for one in project["optional-dependencies"][extra]),
    ]:
        requirement = Requirement(text)
        version, _ = PINS[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), text
    docker = (ROOT / "deploy/Dockerfile").read_text()
    assert "pip install --require-hashes --no-deps -r /opt/altdiffusion/requirements.lock" in docker
    assert not re.search(r"pip install (?!--require-hashes|--no-deps --no-index)", docker)


def test_the_build_context_has_what_the_image_copies() -> None:
    docker = (ROOT / "deploy/Dockerfile").read_text().replace("${LOCK}", LOCK)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+)$", docker, re.M)]
    for path in (path for paths in copied for path in paths if path != "."):
        assert (ROOT / path).is_file() and path in kept, path


def test_licences_and_bill_of_materials_list_the_lock() -> None:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\S+) \| (.+) \|$", (ROOT / LICENCES).read_text(), re.M)
    rows = [row for row in rows if row[0] not in ("package", "---")]
    assert {name: version for name, version, _ in rows} == {name: version for name, (version, _) in PINS.items()}
    packages = [Package(name, version, PINS[name][1], text) for name, version, text in rows]
    assert bill_text(packages) == (ROOT / BILL).read_text()
    assert licences_text(packages) == (ROOT / LICENCES).read_text()
    assert lock_text(packages, "torch==2.13.0").splitlines()[2:] == LINES


def test_the_bill_of_materials_is_valid_cyclonedx() -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (ROOT / BILL).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    wrong = json.loads(text)
    wrong["components"][0]["type"] = "lib"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(wrong)) is not None


def test_no_locked_package_has_an_advisory_of_the_list() -> None:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([0-9.]+) \|", (ROOT / "deploy/advisories.md").read_text(), re.M)
    assert len(rows) > 10
    for name, fixed in rows:
        assert Version(PINS[name][0]) >= Version(fixed), name


def test_a_licence_is_what_the_package_states() -> None:
    assert licence({"license_expression": "MIT", "license": "x"}) == "MIT"
    classes = ["License :: OSI Approved", "License :: OSI Approved :: BSD License", "Topic :: x"]
    assert licence({"classifier": classes, "license": "long"}) == "BSD License"
    assert licence({"license": "\nApache 2\nwith a long text"}) == "Apache 2" and licence({}) == "not stated"


PIP_AUDIT = """
import sys
assert "--strict" in sys.argv and "--require-hashes" in sys.argv
print({stdout!r}); print({stderr!r}, file=sys.stderr); sys.exit({status})
"""


@pytest.mark.parametrize(
    ("stdout", "stderr", "status", "expected", "says"),
    [
        ("No known vulnerabilities found", "", 0, 0, ""),
        ("Name Version ID Fix Versions\nray 2.53 CVE-2026-27482 2.54", "Found 1", 1, 1, "raise the version"),
        ("", "ERROR: requests: Dependency not found on PyPI", 1, 2, "were not looked up (ERROR: requests"),
    ],
)
def test_an_audit_that_asked_nobody_fails(
    tmp_path: Path, stdout: str, stderr: str, status: int, expected: int, says: str
) -> None:
    (tmp_path / "pip_audit.py").write_text(PIP_AUDIT.format(stdout=stdout, stderr=stderr, status=status))
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "deploy.audit"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == expected and says in done.stderr, done.stderr
