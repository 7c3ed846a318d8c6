"""All that `check` may find: ids that stay, and remedies that do no harm."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from ipvs_node_agent.check.finding import AS_ADMIN, OK, Finding
from ipvs_node_agent.check.judge import judge
from tests.support.documents import OPERATIONS
from tests.support.loglines import trees
from tests.support.nodefacts import facts
from tests.unit.check import test_judge_cluster, test_judge_host, test_judge_tables

CASES = {
    **test_judge_cluster.WRONG,
    **test_judge_host.WRONG,
    **test_judge_tables.WRONG,
    **test_judge_tables.OTHER_BACKEND,
    "healthy": {},
    "dropping": test_judge_host.dropping("1", "0"),
}
# What others have built on. To take one away breaks that; a new one is to be added.
_KNOWN = """
    APIServerOK APIServerUnreachable AgentDown AgentElsewhere AgentFailed AgentMasked
    AgentNotEnabled AgentOK AgentStarting AgentTwice BackendLeftover BackendNotKubeProxys
    BackendNotKubelets BackendOK BackendStale ConfigurationInvalid ConfigurationOK
    ConntrackMissing ConntrackOK CredentialsExpired CredentialsInsecure CredentialsMissing
    CredentialsNotRenewed CredentialsNotYetValid CredentialsOK CredentialsUnusable
    ExternalIPsOK ExternalIPsOfPods ExternalIPsRefused FirewalldFlushes FirewallsOK
    ForwardingOff IPVSConntrackOff InvalidInputEndsConnections InvalidInputOK JumpBehind
    JumpMissing JumpsOK KernelOK KubeProxyAbsent KubeProxyInDoubt KubeProxyNotIPVS KubeProxyOK
    KubeProxySilent MarkEmpty MarkMissing MarkNotMasqueraded MarkOK MetricsOK MetricsPortTaken
    NatBefore NftablesFlushes NodeOK NodeUnknown PermissionOK PermissionRefused
    PodCIDRsMissing PodsOK PodsUncovered PredecessorRuns PredecessorsChains PrivilegesMissing
    PrivilegesOK RulesOK RulesOutOfSync SavedRules SavedRulesOfOurs TableOK TableUnreadable
    UfwFlushes
"""
IDS = _KNOWN.split()


def findings() -> list[Finding]:
    return [found for fields in CASES.values() for found in judge(facts(**fields))]


def ids_in_the_program() -> Iterator[str]:
    for name, tree in trees().items():
        for node in ast.walk(tree) if name.startswith("check/judge") else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "failed"):
                (first, *_) = node.args
                assert isinstance(first, ast.Constant), ast.unparse(node)
                yield str(first.value)


def test_no_id_comes_or_goes_unnoticed() -> None:
    assert sorted(set(ids_in_the_program())) == sorted(IDS)


def test_every_id_has_one_entry_in_the_document() -> None:
    shown = [id_ for entry in OPERATIONS.entries("check") for id_ in entry.codes]
    assert sorted(shown) == sorted(IDS)


def test_every_id_is_in_a_case() -> None:
    """So that no remedy escapes the tests below."""
    assert {found.id for found in findings()} == set(IDS)


def test_ids_of_what_is_well_end_alike_and_no_others() -> None:
    for found in findings():
        assert found.id.endswith("OK") == (found.level == OK), found


# What a remedy must not have, and the words that it may have nevertheless.
HARM = {
    "turns a firewall off": r"(disable|stop|mask|purge|remove) .*(ufw|firewalld|nft|filter)",
    "edits a file blindly": r"\bsed\b[^|]* -i|(?<!>)>(?!>)\s*/etc/(?!modules-load)",
    "flushes rules": r"(?<!no)flush|-F\b|-restore(?! -w 5 --noflush)",
    "removes more than it has to": r"\bpurge\b|\brm\b",
    "restarts what serves others": r"delete pod|rollout|restart (?!ipvs-node-agent|kubelet)",
    "kills by name": r"pkill|killall",
}
SAID = ("in place of flush ruleset",)


@pytest.mark.parametrize("pattern", HARM.values(), ids=[*HARM])
def test_no_remedy_does_harm(pattern: str) -> None:
    for found in findings():
        remedy = found.remedy
        for words in SAID:
            remedy = remedy.replace(words, "")
        assert not re.search(pattern, remedy), found


def test_what_a_reboot_would_undo_says_so_or_is_made_to_last() -> None:
    undone = {
        "sysctl -w": "at each start",
        "modprobe": "/etc/modules-load.d/",
        "sysctl -p": ">>/etc",
    }
    for found in findings():
        for command, lasting in undone.items():
            assert command not in found.remedy or lasting in found.remedy, found


def test_kubectl_is_run_where_it_may() -> None:
    """A node's own credentials may do next to nothing."""
    for found in findings():
        assert "kubectl" not in found.remedy.partition(AS_ADMIN)[0], found


def test_what_is_well_needs_no_remedy() -> None:
    assert not [found for found in findings() if found.level == OK and found.remedy]
