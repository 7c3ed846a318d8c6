"""A Service whose rules the kernel refuses is left out, named and tried again; all others work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import Bed
from tests.support.cluster import service
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest", "oldest")]

# No valid Service gives a rule that every kernel refuses, so this command makes one of them such:
# the kernel takes MASQUERADE in no chain that PREROUTING or OUTPUT leads to.
SPOILING = """#!/bin/sh
if [ -e {switch} ]; then
    sed '/-d 10.19.66.66\\/32/s/-j DNAT.*/-j MASQUERADE/' | exec {real} "$@"
else
    exec {real} "$@"
fi
"""
GOOD = ("10.19.20.201", "good", "10.231.42.164")
BAD = ("10.19.66.66", "bad", "10.231.6.6")
LATER = ("10.19.77.7", "later", "10.231.7.7")


def put(bed: Bed, *entries: tuple[str, str, str]) -> None:
    for external, name, cluster_ip in entries:
        bed.api.put(service(name, [cluster_ip], [external]))


def test_the_kernel_refuses_one_service(bed: Bed, tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    switch.touch()
    command = f"iptables-{bed.backend}-restore"
    spoiling = tmp_path / "bin" / command
    spoiling.parent.mkdir()
    spoiling.write_text(SPOILING.format(switch=switch, real=shutil.which(command)))
    spoiling.chmod(0o755)
    path = bed.agent.environment["PATH"]
    bed.agent.variables["PATH"] = f"{spoiling.parent}:{path}"
    put(bed, BAD, GOOD)
    bed.agent.start()
    bed.expect([GOOD])
    put(bed, LATER)
    bed.expect([GOOD, LATER])
    named = "default/bad: its IPv4 rules are left out, trying again: "
    assert bed.agent.log.count(named) == 1
    assert "default/good: its" not in bed.agent.log
    switch.unlink()
    print(bed.agent.log)
    eventually(lambda: any(BAD[0] in line for line in bed.ours(IPV4)), "the rules of bad", 30)
