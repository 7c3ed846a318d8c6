"""What others do to our chains and jumps is undone in two seconds, on a real table."""

from __future__ import annotations

import json
import re
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4, IPV6
from tests.kernel.conftest import WEB, Bed
from tests.support.fleet import LAYOUTS, fleet, raw
from tests.support.tables import add_mark_masq, saved
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13", "oldest")]

MEDDLING = {
    "our chain flushed": "-F IPVS_OUTPUT",
    "a rule deleted": "-D IPVS_OUTPUT 1",
    "a rule changed": "-R IPVS_OUTPUT 1 -d 10.19.20.201/32 -j RETURN",
    "a rule doubled": "-A IPVS_OUTPUT -d 10.19.20.201/32 -j KUBE-MARK-MASQ",
    "a stranger's rule": "-I IPVS_OUTPUT 1 -d 192.0.2.1/32 -j RETURN",
    "our chain renamed": "-E IPVS_OUTPUT GONE",
    "a jump deleted": "-D OUTPUT -j IPVS_OUTPUT",
    "a jump doubled": "-A OUTPUT -j IPVS_OUTPUT",
    "a jump no longer first": "-I OUTPUT 1 -d 192.0.2.1/32 -j RETURN",
    "all rules flushed": "-F",
}


def state(bed: Bed) -> list[str]:
    """All lines of ours, and the first rule of each built-in chain that jumps to them."""
    lines = [line for line in saved(bed.namespace, IPV4, bed.backend) if line.startswith("-A ")]
    first = [
        next((line for line in lines if f" {name} " in line), "")
        for name in ("PREROUTING", "OUTPUT")
    ]
    return [*first, *bed.ours(IPV4)]


def test_everything_that_one_can_do_with_iptables_is_undone(bed: Bed) -> None:
    bed.put(WEB)
    bed.agent.start()
    bed.expect(WEB)
    wanted = state(bed)
    for what, arguments in MEDDLING.items():
        bed.iptables(*arguments.split())
        if arguments == "-F":
            # As kube-proxy does at its next sync; a chain without a rule marks nothing.
            add_mark_masq(bed.namespace, IPV4, bed.backend)
        started = time.monotonic()
        eventually(lambda: state(bed) == wanted, f"an end of: {what}")
        # Two seconds to the next look, and room for a machine that is busy otherwise.
        assert time.monotonic() - started < 10, what
    assert bed.ours(IPV6)
    assert "cannot" not in bed.agent.log


@pytest.mark.parametrize("backend", ["nft"])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["iptables-nft", "-t", "nat", "-F", "IPVS_OUTPUT"], "iptables"),
        (["nft", "flush chain ip nat IPVS_OUTPUT"], "nft"),
        # Whoever it is may call himself anything.
        (["a\x1b[2Jb", "flush chain ip nat IPVS_OUTPUT"], r"a\x1b[2Jb"),
    ],
)
def test_a_repair_names_who_made_it_necessary(
    command: list[str], name: str, bed: Bed, tmp_path: Path
) -> None:
    nft = shutil.which("nft", path="/usr/sbin:/sbin")
    assert nft is not None
    if "\x1b" in command[0]:
        command = [str(shutil.copy(nft, tmp_path / command[0])), *command[1:]]
    bed.put(WEB)
    bed.agent.start()
    bed.expect(WEB)
    changing = bed.namespace.popen(command)
    assert changing.wait(30) == 0
    bed.agent.said("WARNING IPv4: repaired")
    (line,) = [line for line in bed.agent.log.splitlines() if "repaired" in line]
    assert re.search(
        rf"by {re.escape(name)}[-a-z]* \(pid \d+\) \(similar repairs are not logged", line
    ), line
    told = json.loads(bed.agent.call("status", "-o", "json").stdout)["lastRepair"]["text"]
    assert told.partition("IPv4: ")[2] in line


@pytest.mark.parametrize("backend", ["legacy"])
def test_where_nobody_tells_nobody_is_named(bed: Bed) -> None:
    bed.put(WEB)
    bed.agent.start()
    bed.expect(WEB)
    bed.iptables("-F", "IPVS_OUTPUT")
    bed.agent.said("WARNING IPv4: repaired")
    assert "(pid" not in bed.agent.log


def repaired(bed: Bed, times: int) -> bool:
    return bed.agent.log.count("repaired") == times


@pytest.mark.once
@pytest.mark.parametrize(
    ("backend", "count", "limit"),
    [("nft", 10_000, 2.0), ("legacy", 1_000, 2.0), ("legacy", 10_000, 10.0)],
)
def test_with_many_services_too(bed: Bed, count: int, limit: float) -> None:
    for each in fleet(LAYOUTS["twenty pools"], count).values():
        bed.api.put(raw(each))
    bed.agent.start(wait=False)
    eventually(lambda: "ready: " in bed.agent.log, lambda: f"ready\n{bed.agent.log}", 60)
    wanted = state(bed)
    leaf = next(line.split()[1] for line in wanted if "-d " in line and "DNAT" in line)
    took = []
    for arguments in (["-D", "OUTPUT", "-j", "IPVS_OUTPUT"], ["-F", leaf]):
        repairs = bed.agent.log.count("repaired") + 1
        bed.iptables(*arguments)
        began = time.monotonic()
        eventually(partial(repaired, bed, repairs), f"an end of {arguments}", 30)
        took.append(time.monotonic() - began)
        assert state(bed) == wanted
    print(f"{bed.backend}, {count:,} Services: repaired in {took}")
    # Twice, for a machine that has other things to do.
    assert max(took) < 2 * limit
