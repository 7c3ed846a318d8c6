"""`status` of the real process: what the documents show, who may ask, an agent in trouble."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import WEB, WEB6, Bed
from tests.picture import REFUSED, use
from tests.support.agentnode import with_ingress
from tests.support.agentprocess import altered
from tests.support.cluster import service
from tests.support.documents import OPERATIONS
from tests.support.topology import Topology
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian13")]

ADM, NOBODY = 4, 65534
# Five seconds are one here.
IMPATIENT = altered({"observe.statussocket._ASKING_SECONDS": 1.0})


@pytest.fixture
def bed(wired_bed: Bed) -> Bed:
    wired_bed.put(WEB, WEB6, REFUSED)
    return wired_bed


def status(bed: Bed) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(bed.agent.call("status", "-o", "json").stdout)
    return told


def test_the_documents_show_what_it_prints(wired: Topology, bed: Bed, backend: str) -> None:
    bed.agent.start()
    use(bed, wired)
    done = bed.agent.call("status")
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(r"since \S+ \S+ UTC \(\d+ s ago\)", "since WHEN", done.stdout)
    text = OPERATIONS.printed_by("ipvs-node-agent status")
    text = re.sub(r"since \S+ \S+ UTC \(3 h ago\)", "since WHEN", text)
    assert shown == text.replace("iptables-nft", f"iptables-{backend}")


@pytest.mark.parametrize("backend", ["nft"])
def test_it_follows_the_agent_from_its_start_to_its_end(bed: Bed) -> None:
    done = bed.agent.call("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "ipvs-node-agent: status: the agent is not running (journalctl -u ipvs-node-agent)\n"
    )
    assert status(bed)["state"] == "NotRunning"
    kubeconfig = Path(bed.settings["kubeconfig"])
    aside = kubeconfig.rename(kubeconfig.with_suffix(".aside"))
    bed.agent.start(wait=False)
    eventually(lambda: "Waiting: kubeconfig" in bed.agent.call("status").stdout)
    assert bed.agent.call("status").returncode == 1
    aside.rename(kubeconfig)
    # It is looked for every ten seconds.
    eventually(lambda: status(bed)["inSync"], timeout=60)
    told = status(bed)
    assert [family["services"] for family in told["families"]] == [1, 1]
    assert "No such file or directory" in told["lastError"]["text"]
    assert [problem["service"] for problem in told["refused"]] == ["default/bad"]
    bed.agent.send(signal.SIGSTOP)
    bed.agent.program = IMPATIENT
    done = bed.agent.call("status")
    assert done.returncode == 1
    assert "the agent runs but has not answered" in done.stderr
    bed.agent.program = ["-m", "ipvs_node_agent"]
    bed.agent.send(signal.SIGCONT)
    assert status(bed)["inSync"]
    bed.agent.stop()
    assert status(bed)["state"] == "NotRunning"


@pytest.mark.parametrize("backend", ["nft"])
@pytest.mark.parametrize(
    ("user", "group", "works"), [(NOBODY, ADM, True), (NOBODY, NOBODY, False), (0, 0, True)]
)
def test_root_and_members_of_adm_may_ask(
    bed: Bed, tmp_path: Path, user: int, group: int, works: bool
) -> None:
    bed.agent.start()
    socket = bed.agent.runtime / "status"
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o660
    assert os.stat(socket).st_gid == ADM
    # As /run/ipvs-node-agent is.
    for directory in (bed.agent.runtime, *bed.agent.runtime.parents):
        directory.chmod(directory.stat().st_mode | 0o111)
    with bed.namespace.enter():
        done = subprocess.run(
            bed.agent.command("status"),
            user=user,
            group=group,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            env=bed.agent.environment,
        )
    if works:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 3
        assert done.stderr.endswith("Permission denied (be root or in the group adm)\n")


@pytest.mark.parametrize("backend", ["nft"])
def test_what_gets_no_rules_is_said_once_with_its_reason(wired_bed: Bed) -> None:
    hostname = service("named", ["10.231.2.4"], [])
    wired_bed.api.put(with_ingress(hostname, {"hostname": "lb.example.org"}))
    wired_bed.put(("fd00:19::9", "lone", "10.231.2.3"))
    wired_bed.put(("10.19.20.9", "portless", "10.231.2.5"), ports=[])
    wired_bed.configure(services={"matchPorts": "Always"})
    wired_bed.agent.start()
    problems = [(p["service"], p["reason"]) for p in status(wired_bed)["refused"]]
    assert sorted(problems) == [
        ("default/lone", "NoClusterIP"),
        ("default/named", "NoAddress"),
        ("default/portless", "NoPorts"),
    ]
    shown = wired_bed.agent.call("status").stdout
    for name, _ in problems:
        assert shown.count(name) == 1
        assert wired_bed.agent.log.count(f"{name}: ") == 1
