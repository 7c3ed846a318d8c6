"""What follows from real connections; explain/connect makes them."""

from __future__ import annotations

import pytest

from ipvs_node_agent.explain.connect import Attempt
from ipvs_node_agent.explain.lines import FAIL, OK, WARN, Cause, Told
from ipvs_node_agent.explain.services import naming
from ipvs_node_agent.explain.target import target
from ipvs_node_agent.explain.tried import tell, weighed
from ipvs_node_agent.explain.verdict import explain, overall
from ipvs_node_agent.model.addresses import parse_address
from tests.support.situations import SITUATIONS, WEB4

HOST, POD = Attempt("host", 80, True, "connected"), Attempt("pod default/a", 80, True, "connected")
FAILED = POD._replace(ok=False, text="no answer within 3 s")
ADDRESS = parse_address(WEB4)
BY_NAME = {each.name: each for each in SITUATIONS}
HEALTHY = "all is as it should be"
UNTOLD = "somebody in front with a match that is not known"
BROKEN = "a jump that is gone"


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
    assert tell([], ()).lines == []


def test_only_what_nobody_could_tell_is_outweighed() -> None:
    sure, unsure = Cause(False, "no", ""), Cause(None, "unsure", "")
    assert weighed([unsure, sure], None) == [unsure, sure]
    assert weighed([unsure, sure], Told()) == [unsure, sure]
    assert weighed([unsure, sure], tell([HOST, POD], ())) == [sure]
