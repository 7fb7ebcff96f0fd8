"""Every alert fires when it must, and not on healthy series: promtool's own tests, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy/prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]  # fmt: skip
TESTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text(encoding="utf-8"))["tests"]


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    """Run promtool in a folder."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on PATH: apt-get install prometheus")
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)


def asked(rule: dict[str, Any]) -> list[list[bool]]:
    """Return for each test of an alert whether it is expected to fire, at each time that is asked about."""
    name = rule["alert"]
    return [
        [bool(one["exp_alerts"]) for one in test["alert_rule_test"]]
        for test in TESTS
        if {one["alertname"] for one in test["alert_rule_test"]} == {name}
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_never_does(rule: dict[str, Any]) -> None:
    found = asked(rule)
    assert any(any(times) and not times[0] for times in found), "no test in which it fires, and not at first"
    assert any(not any(times) for times in found), "no test on healthy series"


def test_the_rules_pass_their_tests() -> None:
    for arguments in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = promtool(*arguments)
        assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("always", [True, False])
def test_the_tests_notice_an_alert_that_always_or_never_fires(tmp_path: Path, always: bool) -> None:
    tree = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))
    for group in tree["groups"]:
        for rule in group["rules"]:
            rule["expr"] = "vector(1)" if always else "vector(1) > 1"
            rule.pop("for", None)
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(tree))
    shutil.copy(FOLDER / "alerts_test.yaml", tmp_path)
    done = promtool("test", "rules", "alerts_test.yaml", folder=tmp_path)
    assert done.returncode == 1
    failed = [line for line in (done.stdout + done.stderr).splitlines() if "alertname:" in line]
    assert {rule["alert"] for rule in RULES} == {
        rule["alert"] for rule in RULES if any(rule["alert"] in line for line in failed)
    }, failed
