"""The agent goes where the kubelet's chains are, from its start on and whenever that changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from tests.kernel.conftest import Bed
from tests.support.agentprocess import altered
from tests.support.cluster import service
from tests.support.tables import add_mark_masq, restore
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

WEB = ("10.19.20.201", "web", "10.231.42.164")
HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
NO_HINT = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n-X KUBE-IPTABLES-HINT\nCOMMIT\n"
# Five minutes are half a second here.
IMPATIENT = altered({"commands.run._GUESSED_PERIOD": 0.25, "commands.run._BACKEND_PERIOD": 0.5})
# An iptables-save that counts how often it is asked for the kubelet's chains, and fails then for
# as long as a file is there.
STAND_IN = """#!/bin/sh
if [ "$*" = "-t mangle" ]; then
    echo >>{directory}/looks
    [ ! -e {directory}/fail ] || exit 1
fi
exec {real} "$@"
"""

pytestmark.append(pytest.mark.parametrize("backend", ["nft"]))


@pytest.fixture
def running(bed: Bed) -> Bed:
    """An agent that is certain of nft, and has programmed one Service."""
    for family in FAMILIES:
        add_mark_masq(bed.namespace, family, "legacy")
    restore(bed.namespace, IPV4, "nft", HINT)
    bed.agent.configure({**bed.settings, "iptables": {"backend": "auto"}})
    bed.agent.program = IMPATIENT
    bed.api.put(service(WEB[1], [WEB[2]], [WEB[0]]))
    return bed


def test_a_kubelet_that_moves_is_followed_and_nothing_is_left_behind(running: Bed) -> None:
    running.agent.start()
    running.expect([WEB])
    restore(running.namespace, IPV4, "nft", NO_HINT)
    restore(running.namespace, IPV4, "legacy", HINT)
    running.agent.said("the node uses iptables-legacy; moving there")
    eventually(lambda: not any(running.ours(family) for family in FAMILIES), "nft is clean")
    running.backend = "legacy"
    running.expect([WEB])


def test_a_look_that_fails_or_finds_no_trace_keeps_what_there_is(
    running: Bed, tmp_path: Path
) -> None:
    looks, fail = tmp_path / "looks", tmp_path / "fail"
    real = running.namespace.run("sh", "-c", "command -v iptables-nft-save").strip()
    stand_in = tmp_path / "iptables-nft-save"
    stand_in.write_text(STAND_IN.format(directory=tmp_path, real=real))
    stand_in.chmod(0o755)
    running.agent.variables["PATH"] = f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin"
    running.agent.start()
    running.expect([WEB])
    restore(running.namespace, IPV4, "legacy", HINT)
    fail.touch()

    def look(times: int) -> None:
        before = len(looks.read_text())
        eventually(lambda: len(looks.read_text()) >= before + times, "it looks")

    look(3)
    running.expect([WEB])
    restore(running.namespace, IPV4, "legacy", NO_HINT)
    fail.unlink()
    restore(running.namespace, IPV4, "nft", NO_HINT)
    look(3)
    running.expect([WEB])
    assert "moving there" not in running.agent.log
