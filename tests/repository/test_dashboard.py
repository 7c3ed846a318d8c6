"""packaging/grafana: a dashboard that Grafana takes, whose queries ask for what the agent exposes.

docs/dashboard.svg is that dashboard; what makes it is played through here, in little.
"""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.observe.dashboard import COLUMNS, PATH, Panel, filled, panels, read, variables
from tests.observe.draw import draw
from tests.observe.scene import QUICK, run
from tests.support.exposed import series
from tests.support.places import REPOSITORY
from tests.support.promql import metrics, unknown
from tests.support.promtool import check_queries, need_prometheus

# What Grafana knows by itself.
BUILT_IN = {"__rate_interval"}
# What no panel is about: of a connection only the first packet's bytes are known.
NOT_SHOWN = {"ipvs_node_agent_service_bytes_total"}

# A process that is the agent's.
_JOINED = " and on (instance, job) ipvs_node_agent_build_info"

PANELS = panels()
TITLES = [panel.title for panel in PANELS]


# 1. The file


def test_it_is_a_dashboard_that_can_be_imported() -> None:
    found = read()
    assert found["schemaVersion"] >= 39
    assert (found["uid"], found["title"]) == ("ipvs-node-agent", "ipvs-node-agent")
    # Grafana gives it a number of its own; one that is there would replace another dashboard.
    assert found.get("id") is None
    assert {variable["name"] for variable in found["templating"]["list"]} == {
        "datasource",
        "cluster",
        "instance",
    }


def test_each_panel_is_complete() -> None:
    raws = read()["panels"]
    assert len({raw["id"] for raw in raws}) == len(raws)
    assert len(set(TITLES)) == len(TITLES)
    source = {"type": "prometheus", "uid": "${datasource}"}
    for raw in raws:
        assert raw["type"] in ("stat", "table", "timeseries")
        assert raw["datasource"] == source
        assert raw["description"]
        names = [target["refId"] for target in raw["targets"]]
        assert names == list("ABCDEF"[: len(names)])
        assert all(target["datasource"] == source for target in raw["targets"])


def test_panels_are_beside_each_other() -> None:
    def cells(panel: Panel) -> set[tuple[int, int]]:
        across, down = range(panel.x, panel.x + panel.width), range(panel.y, panel.y + panel.height)
        return {(x, y) for x in across for y in down}

    for panel in PANELS:
        assert panel.x + panel.width <= COLUMNS
    for one, other in combinations(PANELS, 2):
        assert not cells(one) & cells(other), (one.title, other.title)


def test_every_variable_is_one_that_there_is() -> None:
    known = {variable["name"] for variable in read()["templating"]["list"]}
    assert variables(PATH.read_text()) == known | BUILT_IN


# 2. The queries


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_a_query_is_for_what_the_agents_of_the_chosen_nodes_expose(panel: Panel) -> None:
    for target in panel.targets:
        assert not unknown(target.expr, *re.findall(r"\{\{(\w+)\}\}", target.legend))
        assert not re.search(r"ipvs_node_agent_\w+(?!\w|{)", target.expr.replace(_JOINED, ""))
        chosen = re.findall(r"{([^}]*)}", target.expr)
        assert chosen
        assert all(each.endswith('cluster=~"$cluster", instance=~"$instance"') for each in chosen)


def test_every_metric_has_a_panel() -> None:
    shown = {name for panel in PANELS for target in panel.targets for name in metrics(target.expr)}

    def is_shown(name: str) -> bool:
        part = re.fullmatch(r"(.*)_(count|sum|bucket)", name)
        return name in shown or (part is not None and f"{part[1]}_bucket" in shown)

    own = {name for name in series() if name.startswith("ipvs_node_agent_")}
    assert {name for name in own if not is_shown(name)} == NOT_SHOWN


def test_promtool_takes_the_queries(tmp_path: Path) -> None:
    values = {"cluster": ".*", "instance": "worker-1|worker-2", "__rate_interval": "4m"}
    queries = [filled(target.expr, **values) for panel in PANELS for target in panel.targets]
    check_queries(queries, tmp_path)


# 3. The picture of it


@pytest.mark.kernel
@pytest.mark.once("debian12")
def test_a_run_has_something_to_show_in_each_panel() -> None:
    need_prometheus()
    recorded = run(QUICK)
    picture = draw(recorded)
    texts = {element.text for element in ElementTree.fromstring(picture).iter() if element.text}
    assert texts.issuperset(TITLES)
    shown = {each.name for _, found in recorded.panels for each in found}
    assert shown >= {"Loopback", "LinkLocal", "ChainFlushed", "JumpMissing", "Unreachable"}
    assert "worker-3: another version" in {name.strip() for name in shown}
    for moment in recorded.moments:
        assert any(moment.what in text for text in texts)


def test_the_documents_have_the_picture() -> None:
    picture = ElementTree.parse(REPOSITORY / "docs" / "dashboard.svg")
    texts = {element.text for element in picture.iter() if element.text}
    assert texts.issuperset(TITLES), "make dashboard draws it anew"
