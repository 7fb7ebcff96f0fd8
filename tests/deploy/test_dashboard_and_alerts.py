"""The dashboard, the alert rules and the runbook: they load, name metrics that exist, and agree with each other."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
import yaml

from altdiffusion import cli
from altdiffusion.monitoring.catalogue import CATALOGUE
from jobs.command_line import job_parser
from jobs.harness import main

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/altdiffusion.json").read_text(encoding="utf-8"))
ALERTS: dict[str, Any] = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
RUNBOOK = (ROOT / "docs/runbook.md").read_text(encoding="utf-8")
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_RAYLETS = {
    "ray_resources",
    "ray_object_store_used_memory",
    "ray_object_store_available_memory",
    "ray_spill_manager_objects_bytes",
}
"""What the C++ part of Ray exports: `test_prometheus_finds_what_a_step_counts` finds these names."""
WIDTH = 24
"""Columns of Grafana's grid."""
_NAME = re.compile(r"\bray_[a-z0-9_]+\b")


def expressions() -> list[str]:
    """Return every query of the dashboard and the rules, with Grafana's variables filled in."""
    of_panels = [target["expr"] for panel in PANELS for target in panel["targets"]]
    filled = [re.sub(r"\$__rate_interval", "5m", re.sub(r"\$(job|run)\b", ".*", text)) for text in of_panels]
    return [*filled, *(rule["expr"] for rule in RULES)]


def used_names() -> set[str]:
    """Return the metrics that the dashboard and the rules use."""
    return {name for text in expressions() for name in _NAME.findall(text)}


def of_rays_own() -> set[str]:
    """Return those of them that Ray itself exports."""
    ours = {name for metric in CATALOGUE for name in metric.exported}
    return used_names() - ours


def test_every_metric_of_ours_is_in_the_catalogue_and_most_are_shown() -> None:
    ours = {name for metric in CATALOGUE for name in metric.exported}
    assert {name for name in used_names() if name.startswith("ray_altdiffusion_")} <= ours
    shown = {metric.name for metric in CATALOGUE if used_names().intersection(metric.exported)}
    unseen = {metric.name for metric in CATALOGUE} - shown
    assert unseen <= {"units_finished", "train_checkpoint_step"}  # units_done and train_step show the same


def test_every_other_metric_is_one_that_ray_exports() -> None:
    folder = Path(ray.__file__).parent
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in (*folder.glob("dashboard/modules/reporter/*.py"), *folder.glob("dashboard/modules/metrics/**/*.py"))
    )
    named = {name for name in of_rays_own() if name.removeprefix("ray_") in source}
    assert of_rays_own() - named <= OF_RAYLETS


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    assert DASHBOARD["schemaVersion"] >= 36  # data sources are named by type and uid since then
    assert re.fullmatch(r"[\w\-]{1,40}", DASHBOARD["uid"])
    assert "id" not in DASHBOARD  # which is the database's
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    source = {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["datasource"] == source
        assert panel["title"]
        assert [target["refId"] for target in panel["targets"]] == [chr(65 + i) for i in range(len(panel["targets"]))]
        assert all(target["datasource"] == source for target in panel["targets"])
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__all", "__rate_interval"}
    assert used == set(variables)


def test_panels_are_inside_the_grid_and_do_not_overlap() -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in DASHBOARD["panels"]]
    for title, place in places:
        assert place["x"] >= 0, title
        assert place["x"] + place["w"] <= WIDTH, title
    for (one, a), (other, b) in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )  # fmt: skip
        assert apart, (one, other)


def test_every_expression_is_valid_promql() -> None:
    for text in expressions():
        promql_parser.parse(text)
    with pytest.raises(ValueError):
        promql_parser.parse("sum by (run (x)")


def test_every_alert_has_what_a_receiver_needs() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "0m"))
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert "$value" in rule["annotations"]["summary"]


def test_the_runbook_has_a_section_per_alert_in_their_order() -> None:
    sections = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == [rule["alert"] for rule in RULES]
    for section, rule in zip(sections, RULES, strict=True):
        assert f"*{rule['labels']['severity'].capitalize()}.*" in section
        assert "```bash" in section
        assert re.search(r"^Do not ", section, re.MULTILINE), rule["alert"]


def test_the_commands_of_the_runbook_exist() -> None:
    """Each is parsed by its own program's parser: a verb or an option that is not known is an error."""
    from ray.scripts.scripts import cli as ray_cli

    for block in re.findall(r"```bash\n(.*?)```", RUNBOOK, re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line)
            if words[0] == "altdiffusion":
                assert cli.parser().parse_args(words[1:]).run is not None
            elif words[:2] == ["python", "-m"]:
                name = words[2].removeprefix("jobs.")
                arguments = job_parser(name, None).parse_intermixed_args(words[3:])
                if arguments.explain is not None:
                    assert main(importlib.import_module(words[2]).JOB, words[3:]) == 0
                else:
                    assert (ROOT / arguments.config).is_file()
            elif words[0] == "ray":
                command, rest = ray_cli, words[1:]
                while hasattr(command, "commands"):
                    command, rest = command.commands[rest[0]], rest[1:]
                command.make_context(rest[0] if rest else "", list(rest), resilient_parsing=False)
            else:
                assert words[0] in ("curl", "df", "du")
