"""What follows from real connections; explain/connect makes them."""

from __future__ import annotations

import pytest

from ipvs_node_agent.explain.connect import Attempt
from ipvs_node_agent.explain.lines import FAIL, OK, WARN, Cause
from ipvs_node_agent.explain.services import naming
from ipvs_node_agent.explain.target import target
from ipvs_node_agent.explain.tried import Tried, tell, weighed
from ipvs_node_agent.explain.verdict import explain, overall
from ipvs_node_agent.model.addresses import parse_address
from ipvs_node_agent.model.objects import Port
from tests.support.situations import SITUATIONS, WEB4

HOST, POD = Attempt("host", 80, True, "connected"), Attempt("pod default/a", 80, True, "connected")
FAILED = POD._replace(ok=False, text="no answer within 3 s")
ADDRESS = parse_address(WEB4)
BY_NAME = {each.name: each for each in SITUATIONS}
HEALTHY = "nothing is wrong"
UNTOLD = "another program's rule in front with an unknown match"
BROKEN = "a jump that is missing for the host"


@pytest.mark.parametrize(
    ("situation", "attempts", "works", "sentence"),
    [
        (HEALTHY, [HOST, POD], True, "works"),
        (
            HEALTHY,
            [HOST, FAILED],
            False,
            "from pod default/a to tcp port 80: no answer",
        ),
        (HEALTHY, [], True, "should work as far as"),
        (UNTOLD, [HOST, POD], True, "works"),
        (UNTOLD, [HOST], None, "has the match owner"),
        (UNTOLD, [HOST, POD._replace(port=81)], None, "has the match owner"),
        (UNTOLD, [HOST, FAILED], False, "a connection from pod default/a"),
        (UNTOLD, [], None, "has the match owner"),
        (BROKEN, [HOST, FAILED], False, "OUTPUT does not jump to IPVS_OUTPUT"),
        (BROKEN, [HOST, POD], False, "OUTPUT does not jump to IPVS_OUTPUT"),
    ],
)
def test_what_connections_make_of_a_verdict(
    situation: str, attempts: list[Attempt], works: bool | None, sentence: str
) -> None:
    case = BY_NAME[situation]
    facts = case.facts
    told = tell(attempts, naming(facts, ADDRESS))
    found = explain(facts, target(case.asked), {ADDRESS: told})
    assert overall(found) is works
    assert sentence in found[0].verdict.sentence


def test_each_attempt_is_a_line_and_names_what_to_look_at() -> None:
    told = tell([HOST, FAILED], naming(BY_NAME[HEALTHY].facts, ADDRESS))
    assert [line.level for line in told.lines] == [OK, FAIL]
    (cause,) = told.causes
    assert "kubectl -n default get endpointslices -l kubernetes.io/service-name=web" in cause.mend
    assert tell([FAILED], ()).causes[0].mend == "the Service's endpoints, and network policies"


def test_that_there_was_no_pod_is_said() -> None:
    assert [line.level for line in tell([HOST], ()).lines] == [OK, WARN]
    (line,) = tell([], ()).lines
    assert line.level == WARN


def test_only_what_nobody_could_tell_is_outweighed() -> None:
    sure, unsure = Cause(False, "no", ""), Cause(None, "unsure", "")
    both = tell([HOST, POD], ())
    assert weighed([unsure, sure], Tried(), is_all=False) == [unsure, sure]
    assert weighed([unsure, sure], both, is_all=False) == [unsure, sure]
    assert weighed([unsure, sure], both, is_all=True) == [sure]
    failed = tell([HOST, FAILED], ())
    assert weighed([unsure], failed, is_all=True) == [unsure, *failed.causes]


@pytest.mark.parametrize(
    ("attempts", "ports", "is_all"),
    [
        ([HOST, POD], [("tcp", 80)], True),
        ([HOST], [("tcp", 80)], False),
        ([POD], [("tcp", 80)], False),
        ([HOST, POD], [("tcp", 80), ("tcp", 81)], False),
        ([HOST, POD], [("tcp", 80), ("udp", 80)], False),
        ([HOST, POD], [], False),
    ],
)
def test_connections_are_about_all_that_they_were_made_to(
    attempts: list[Attempt], ports: list[tuple[str, int]], is_all: bool
) -> None:
    assert Tried(attempts).covers([Port(*each) for each in ports]) is is_all
