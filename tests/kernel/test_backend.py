"""The agent goes where the kubelet's chains are, from its start on and whenever that changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_node_agent.iptables.backends import detect_backend
from ipvs_node_agent.iptables.command import launch
from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from tests.kernel.conftest import WEB, Bed
from tests.support.agentprocess import altered
from tests.support.netns import Namespace
from tests.support.tables import add_mark_masq, restore
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
NO_HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n-X KUBE-IPTABLES-HINT\nCOMMIT\n"
# Five minutes are half a second here.
IMPATIENT = altered(
    {"commands.mainloop._GUESSED_PERIOD": 0.25, "commands.mainloop._BACKEND_PERIOD": 0.5}
)


@pytest.mark.once("newest", "oldest")
@pytest.mark.parametrize("used", ["nft", "legacy"])
def test_the_backend_is_the_one_with_the_kubelets_chains(namespace: Namespace, used: str) -> None:
    restore(namespace, IPV4, used, HINT)
    with namespace.enter():
        assert detect_backend(launch()) == used


@pytest.mark.once("newest", "oldest")
def test_looking_for_the_backend_makes_no_table(namespace: Namespace) -> None:
    with namespace.enter():
        assert detect_backend(launch()) is None
    assert namespace.run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names") == ""
    assert namespace.run("nft", "list", "ruleset") == ""


@pytest.fixture
def certain(bed: Bed) -> Bed:
    """An agent that will be certain of nft; its node has one Service."""
    for family in FAMILIES:
        add_mark_masq(bed.namespace, family, "legacy")
    restore(bed.namespace, IPV4, "nft", HINT)
    bed.configure(iptables={"backend": "auto"})
    bed.agent.program = IMPATIENT
    bed.put(WEB)
    return bed


@pytest.mark.once("debian12", "newest")
@pytest.mark.parametrize("backend", ["nft"])
def test_a_kubelet_that_moves_is_followed_and_nothing_is_left_behind(certain: Bed) -> None:
    certain.agent.start()
    certain.expect(WEB)
    restore(certain.namespace, IPV4, "nft", NO_HINT)
    restore(certain.namespace, IPV4, "legacy", HINT)
    certain.agent.said("the node uses iptables-legacy; moving there")
    eventually(lambda: not any(certain.ours(family) for family in FAMILIES), "nft is clean")
    certain.backend = "legacy"
    certain.expect(WEB)


@pytest.mark.parametrize("backend", ["nft"])
def test_a_look_that_fails_or_finds_no_trace_keeps_what_there_is(
    certain: Bed, tmp_path: Path
) -> None:
    looks, fail = tmp_path / "looks", tmp_path / "fail"
    script = '[ "$*" != "-t mangle" ] || { echo >>$here/looks; [ ! -e $here/fail ] || exit 1; }'
    certain.stand_in(tmp_path, "iptables-nft-save", f'{script}\nexec $real "$@"')
    certain.agent.start()
    certain.expect(WEB)
    restore(certain.namespace, IPV4, "legacy", HINT)
    fail.touch()

    def look(times: int) -> None:
        before = len(looks.read_text())
        eventually(lambda: len(looks.read_text()) >= before + times, "it looks")

    look(3)
    certain.expect(WEB)
    restore(certain.namespace, IPV4, "legacy", NO_HINT)
    fail.unlink()
    restore(certain.namespace, IPV4, "nft", NO_HINT)
    look(3)
    certain.expect(WEB)
    assert "moving there" not in certain.agent.log
