"""What `explain` says of a node is what becomes of real packets there.

The table of all situations is tests/unit/explain's; here are those in which the kernel is the one
who tells. It has no IPVS, and so what IPVS has is told here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import pytest

from ipvs_node_agent.commands.explain import as_text
from ipvs_node_agent.explain.verdict import overall
from ipvs_node_agent.model.addresses import FAMILIES, parse_address
from tests.picture import Node, explained_node, pictured
from tests.support.cluster import pod
from tests.support.documents import EXPLAIN_PICTURE, lines_in
from tests.support.kubeproxy import add_tables, proxy_mode, remove_tables
from tests.support.situations import virtual
from tests.support.topology import BACKEND, CLUSTER_IP, EXTERNAL_IP, NODE_TO_BACKEND, POD, ask
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

WEB4, WEB_6 = EXTERNAL_IP[4], f"[{EXTERNAL_IP[6]}]:80"
STARTS = "systemctl start ipvs-node-agent"


@pytest.fixture(scope="module", params=["nft", "legacy"])
def broken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """A node whose agent has made its rules, and is down."""
    with explained_node(request.param, tmp_path_factory.mktemp("node")) as made:
        made.agent.stop()
        yield made


@pytest.fixture
def undone(broken: Node) -> Iterator[Node]:
    """The same node, whose tables are as before once the test has ended."""
    tables = [
        (
            f"{family.command}-{broken.backend}-restore",
            broken.namespace.run(f"{family.command}-{broken.backend}-save", "-t", "nat"),
        )
        for family in FAMILIES
    ]
    yield broken
    for restore, text in tables:
        broken.namespace.run(restore, "-w", "10", stdin=text)


def reached(node: Node, version: int) -> bool:
    """Whether both the pod and the host get to the Service and its answer back."""
    clients = node.around.pod, node.around.node
    answers = [ask(client, EXTERNAL_IP[version], timeout=0.4) for client in clients]
    return answers == [NODE_TO_BACKEND[version]] * 2


nft_alone = pytest.mark.parametrize("broken", ["nft"], indirect=True)

# What is done to the tables, what is asked, whether it works, and what is said.
IN_THE_TABLES = {
    "nothing": (":", WEB4, True, "should work"),
    "nothing, IPv6": (":", WEB_6, True, "should work"),
    "a jump": ("nat -D OUTPUT -j IPVS_OUTPUT", WEB4, False, "OUTPUT does not jump to IPVS_OUTPUT"),
    "a jump, IPv6": (
        "nat6 -D PREROUTING -j IPVS_PREROUTING",
        WEB_6,
        False,
        "PREROUTING does not jump to IPVS_PREROUTING",
    ),
    "a chain": ("nat -F IPVS_PREROUTING", WEB4, False, "the chain IPVS_PREROUTING is empty"),
    "all chains": (
        "for c in OUTPUT PREROUTING; do nat -D $c -j IPVS_$c; nat -F IPVS_$c; nat -X IPVS_$c; done",
        WEB4,
        False,
        "there is no chain IPVS_PREROUTING",
    ),
    "the DNAT": ("nat -D IPVS_OUTPUT 2", WEB4, False, "has no rule for the packet"),
    "the mark": ("nat -D IPVS_OUTPUT 1", WEB4, False, "is not marked, so its source stays"),
    "another ClusterIP": (
        "nat -R IPVS_OUTPUT 2 -d 10.19.20.201 -j DNAT --to-destination 10.231.2.62",
        WEB4,
        False,
        "is sent to 10.231.2.62, but the ClusterIP is 10.231.42.164",
    ),
    "who masquerades": ("nat -F KUBE-POSTROUTING", WEB4, False, "which nothing masquerades"),
    "a taker in front": (
        "nat -I OUTPUT 1 -p tcp --dport 80 -j REDIRECT --to-ports 9",
        WEB4,
        False,
        "rule 1 of OUTPUT sends it to 9, before IPVS_OUTPUT does",
    ),
    "somebody harmless in front": (
        "nat -N cali-OUTPUT; nat -A cali-OUTPUT -d 192.0.2.7 -j DNAT --to-destination 10.233.9.9;"
        " nat -I OUTPUT 1 -j cali-OUTPUT",
        WEB4,
        True,
        "should work",
    ),
    "kube-proxy's sets in front": (
        "nat -D OUTPUT -j IPVS_OUTPUT; nat -A OUTPUT -j IPVS_OUTPUT",
        WEB4,
        None,
        "has the match set --match-set KUBE-CLUSTER-IP dst,dst, which is not known here",
    ),
}  # fmt: skip


# What could differ by the backend.
ON_LEGACY = ["nothing", "a jump", "a chain", "the mark", "a taker in front"]


@pytest.mark.parametrize(
    ("broken", "name"),
    [("nft", name) for name in IN_THE_TABLES] + [("legacy", name) for name in ON_LEGACY],
    indirect=["broken"],
)
def test_what_is_said_of_the_tables_is_what_becomes_of_packets(undone: Node, name: str) -> None:
    script, asked, works, said = IN_THE_TABLES[name]
    undone.shell(script)
    found = undone.explained(asked)
    assert overall(found) is works, as_text(found)
    assert said in found[0].verdict.sentence
    version = 6 if ":" in asked else 4
    if works:
        eventually(lambda: reached(undone, version))
    assert works is not False or not reached(undone, version)
    # With the agent down and nothing of it amiss, that is said; else to start it mends it.
    if works is not None and "not" in said:
        assert found[0].verdict.mend == STARTS


@nft_alone
def test_rules_in_the_other_backend_are_walked_as_well(broken: Node) -> None:
    broken.namespace.run("iptables-legacy", "-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "LOG")
    assert overall(broken.explained(WEB4)) is True
    rule = ["OUTPUT", "-d", WEB4, "-j", "DNAT", "--to-destination", BACKEND[4]]
    broken.namespace.run("iptables-legacy", "-t", "nat", "-A", *rule)
    found = broken.explained(WEB4)
    broken.namespace.run("iptables-legacy", "-t", "nat", "-F", "OUTPUT")
    assert overall(found) is None
    assert "which table comes first cannot be told" in found[0].verdict.sentence


@nft_alone
def test_a_chain_of_nfts_own_in_front_is_named(broken: Node) -> None:
    broken.shell(
        "nft add table inet firewall; nft add chain inet firewall pre"
        " '{ type nat hook prerouting priority -150; }'; nft add rule inet firewall pre accept"
    )
    found = broken.explained(WEB4)
    broken.shell("nft delete table inet firewall")
    assert overall(found) is None
    assert found[0].verdict.mend == "nft list chain inet firewall pre"


@nft_alone
@pytest.mark.parametrize(
    ("asked", "works", "said"),
    [
        ("10.19.99.99", False, "no Service names 10.19.99.99"),
        (f"{WEB4}:81", False, "Service default/web has tcp 80, and not tcp 81"),
        ("default/web", True, "should work"),
        ("default/nobody", False, "there is none"),
        (CLUSTER_IP[4], False, "is the ClusterIP of Service default/web"),
    ],
)
def test_what_is_asked(broken: Node, asked: str, works: bool, said: str) -> None:
    found = broken.explained(asked)
    assert overall(found) is works, as_text(found)
    assert said in found[0].verdict.sentence
    assert len(found) == (2 if works else 1)


@nft_alone
@pytest.mark.parametrize(
    ("ipvs", "said"),
    [
        ((), "IPVS: has no virtual server tcp 10.231.42.164:80"),
        ((0,), "has no real server that takes connections: 1 of 1 are terminating"),
    ],
)
def test_who_takes_connections(broken: Node, ipvs: Sequence[int], said: str) -> None:
    usual = broken.ipvs
    broken.ipvs = tuple(virtual(parse_address(CLUSTER_IP[4]), "tcp", 80, weight) for weight in ipvs)
    found = broken.explained(WEB4)
    broken.ipvs = usual
    assert said in found[0].verdict.sentence


@nft_alone
def test_pods_that_no_rule_covers(broken: Node) -> None:
    broken.api.put(pod("lost", "10.99.0.7"))
    broken.shell("ip route add 10.99.0.7/32 dev to-pod")
    found = broken.explained(WEB4)
    broken.shell("ip route delete 10.99.0.7/32 dev to-pod")
    broken.api.delete("Pod", "default", "lost")
    said = "1 pod of this node has no rules: default/lost at 10.99.0.7 by to-pod"
    assert found[0].verdict.sentence == f"should not work: {said}"


@nft_alone
def test_two_services_on_one_port(broken: Node) -> None:
    broken.put((WEB4, "younger", "10.231.7.7"))
    found = broken.explained("default/younger")
    broken.delete("younger")
    assert overall(found) is False
    assert "10.19.20.201 tcp 80 belongs to default/web" in found[0].verdict.sentence


@nft_alone
def test_kube_proxy_in_another_mode(broken: Node) -> None:
    add_tables(broken.namespace, "nftables")
    with proxy_mode(broken.namespace, "nftables"):
        found = broken.explained(WEB4)
    remove_tables(broken.namespace, "nftables")
    assert overall(found) is False
    assert "is sent to 10.231.42.164 by a rule that should be gone" in found[0].verdict.sentence


@nft_alone
def test_without_the_api_server_rules_alone_tell(broken: Node) -> None:
    broken.api.stop()
    found, nobody = broken.explained(WEB4), broken.explained("192.168.7.77")
    broken.api.start()
    assert (overall(found), overall(nobody)) == (True, None)
    assert any(
        "is sent to 10.231.42.164 for Service default/web" in text for *_, text in found[0].lines
    )
    assert "no rule of this node names 192.168.7.77" in nobody[0].verdict.sentence


@nft_alone
def test_the_command_says_it_by_its_exit_status_and_changes_nothing(broken: Node) -> None:
    def state() -> str:
        shown = "nft --stateless list ruleset; cat /proc/net/ip_tables_names"
        return broken.namespace.run("sh", "-c", shown)

    before = state()
    # Whether nobody takes connections without IPVS is up to kube-proxy.
    assert broken.agent.call("explain", "10.19.20.201:80").returncode == 3
    with proxy_mode(broken.namespace, "ipvs"):
        done = broken.agent.call("explain", "10.19.20.201:80")
        assert done.returncode == 1
        verdict, mend = done.stdout.splitlines()[-2:]
        assert verdict.startswith(f"{WEB4}:80: should not work: IPVS: is not in this kernel")
        assert mend.startswith("=> ")
        assert "  PREROUTING 1 (" in done.stdout
        asked = broken.agent.call("explain", "-o", "json", "--connect", f"{WEB4}:80")
        raw = json.loads(asked.stdout)
        assert (asked.returncode, raw["kind"], raw["works"]) == (1, "Explanation", False)
        lines = raw["explanations"][0]["lines"]
        assert [line["text"] for line in lines if line["subject"] == "connection"] == [
            f"from {who} to tcp port 80: connected" for who in ("the host", f"pod {POD[4]}")
        ]
    assert state() == before


@nft_alone
@pytest.mark.parametrize(
    "asked", ["", "web", "10.19.20.201:0", "a/b/c", "fd00::1:80:http", "\x1b[2J"]
)
def test_a_bad_target_is_one_line(broken: Node, asked: str) -> None:
    done = broken.agent.call("explain", asked)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.isprintable() or done.stderr[:-1].isprintable()


@nft_alone
def test_the_picture_shows_what_it_prints(broken: Node) -> None:
    broken.agent.start()
    shown = pictured(broken)
    broken.agent.stop()
    # How many packets there were is another number each time.
    drawn = lines_in(EXPLAIN_PICTURE)
    assert [re.sub(r"\(\d+ packets?\)", "", text.strip()) for text in drawn] == [
        re.sub(r"\(\d+ packets?\)", "", line.strip()) for line in shown.splitlines() if line
    ], "python3 -m tests.picture draws it anew"
