"""packaging/prometheus: rules that promtool takes, on metrics that there are, each proved to alert.

That an alert fires and stays silent is promtool's to prove, by the cases beside the rules; that
those cases would notice is proved here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.documents import OPERATIONS
from tests.support.exposed import text
from tests.support.places import PACKAGING
from tests.support.promql import unknown
from tests.support.promtool import need_prometheus, promtool

HERE = PACKAGING / "prometheus"
RULES, CASES = "ipvs-node-agent.rules.yaml", "ipvs-node-agent.rules.test.yaml"

_LIMIT = re.compile(r"[=<>]+ [\d* ]+$")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / name).read_text())
    return found


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


NAMES = [alert["alert"] for alert in alerts()]


# 1. The rules


def test_promtool_takes_the_rules() -> None:
    need_prometheus()
    status, said = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES, directory=HERE)
    assert status == 0, said
    assert f"{len(NAMES)} rules found" in said


@pytest.mark.parametrize("alert", alerts(), ids=NAMES)
def test_an_alert_is_complete_and_on_what_the_agent_exposes(alert: dict[str, Any]) -> None:
    shown = re.findall(r"\$labels\.(\w+)", str(alert["annotations"]))
    assert not unknown(alert["expr"], *shown)
    assert NAMES.count(alert["alert"]) == 1
    assert alert["alert"].startswith("IpvsNodeAgent")
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    anchor = alert["annotations"]["runbook_url"].partition("/docs/operations.md#")[2]
    (entry,) = (each for each in OPERATIONS.entries("alert") if alert["alert"] in each.codes)
    assert anchor == entry.anchor
    # What happened once is over before it alerts.
    windows = re.findall(r"\[(\d+)m\]", alert["expr"]) if "increase(" in alert["expr"] else []
    assert int(alert["for"].rstrip("m")) > max(map(int, windows), default=0)


def test_the_manifest_for_the_operator_has_the_same_rules() -> None:
    manifest = read("prometheusrule.yaml")
    assert manifest["kind"] == "PrometheusRule"
    assert manifest["spec"] == read(RULES)


def test_the_operators_scrape_configuration_is_the_other_one() -> None:
    """In words of its own, and with the job's name, which the operator would make otherwise."""
    (job,) = read("ipvs-node-agent.scrape.yaml")["scrape_configs"]
    spec = read("scrapeconfig.yaml")["spec"]
    named = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    relabelled = [
        {named.get(key, key): value for key, value in each.items()} for each in spec["relabelings"]
    ]
    own = {"replacement": job["job_name"], "target_label": "job"}
    assert relabelled == [*job["relabel_configs"], own]
    assert spec["kubernetesSDConfigs"] == [{"role": "Node"}]
    assert job["kubernetes_sd_configs"] == [{"role": "node"}]


# 2. Their cases


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    checks = [check for case in read(CASES)["tests"] for check in case["alert_rule_test"]]
    fires = [bool(check.get("exp_alerts")) for check in checks if check["alertname"] == name]
    assert set(fires) == {True, False}


def test_alerts_fire_when_they_should_and_only_then() -> None:
    need_prometheus()
    status, said = promtool("test", "rules", CASES, directory=HERE)
    assert status == 0, said


@pytest.mark.once("debian12")
@pytest.mark.parametrize("name", NAMES)
def test_the_cases_notice_an_alert_that_is_wrong(name: str, tmp_path: Path) -> None:
    need_prometheus()
    rules, cases = read(RULES), read(CASES)
    (alert,) = (rule for rule in rules["groups"][0]["rules"] if rule["alert"] == name)
    cases["tests"] = [case for case in cases["tests"] if name in str(case["alert_rule_test"])]
    (tmp_path / CASES).write_text(yaml.safe_dump(cases))
    expr = alert["expr"].strip()
    for wrong in (
        {"for": "0s"},
        {"for": "2h"},
        {"expr": f"({expr}) and vector(1) < 0"},
        # Of every node that has the metric.
        {"expr": _LIMIT.sub("!= -1", expr) if _LIMIT.search(expr) else f"({expr}) or up"},
        {"labels": {"severity": "page"}},
    ):
        rule = {**alert, **wrong}
        assert rule != alert
        rules["groups"][0]["rules"] = [rule]
        (tmp_path / RULES).write_text(yaml.safe_dump(rules))
        status, said = promtool("test", "rules", CASES, directory=tmp_path)
        assert status == 1, (wrong, said)
        assert name in said


# 3. What they are on


def test_promtool_takes_the_metrics() -> None:
    need_prometheus()
    assert promtool("check", "metrics", stdin=text()) == (0, "")


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("ipvs_node_agent_rulez > 0", "ipvs_node_agent_rulez"),
        ('ipvs_node_agent_rules{family="IPv4"}', "ipvs_node_agent_rules{family}"),
        ("sum by (family) (ipvs_node_agent_rules)", "family in "),
        ('ipvs_node_agent_rules{ip_family=~"IPv4|IPv5"}', 'ipvs_node_agent_rules{ip_family="IPv5'),
        ("vector(1)", "no metric in "),
    ],
)
def test_a_metric_or_a_label_that_no_agent_has_is_noticed(expr: str, fault: str) -> None:
    (found,) = unknown(expr)
    assert found.startswith(fault)


def test_what_an_agent_has_is_known_and_a_label_that_is_shown_is_looked_for() -> None:
    assert unknown('sum by (job, ip_family) (ipvs_node_agent_rules{ip_family="IPv4"}) + up') == []
    assert unknown("ipvs_node_agent_rules", "family")
