"""`diff`: what the API server tells once, and the changes that it makes necessary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from ipvs_node_agent.apiserver.client import Api, ApiError
from ipvs_node_agent.commands import diff
from ipvs_node_agent.commands.diff import coloured_change
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.iptables.proxymode import ProxyMode
from ipvs_node_agent.nat.saveformat import restore_input
from tests.support.apiserver import ApiServer
from tests.support.cluster import POD_CIDRS, node, service
from tests.support.commandline import Command, written
from tests.support.pki import plain_kubeconfig
from tests.support.standinkernel import StandInKernel, fresh_kernel

pytestmark = pytest.mark.usefixtures("kubeconfig_read_here")

CHANGE = """\
# iptables-nft-restore --noflush
*nat
:IPVS_OUTPUT - [0:0]
-D OUTPUT -j IPVS_OUTPUT
-A IPVS_OUTPUT -d 10.19.20.201/32 -j DNAT --to-destination 10.231.42.164
-I OUTPUT 1 -j IPVS_OUTPUT
-X IPVS_OUTPUT-0a131400/22
COMMIT
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "ipvs-node-agent"))
    with ApiServer() as running:
        plain_kubeconfig(tmp_path / "kubelet.conf", running.url, "worker-1")
        running.put(node(*POD_CIDRS))
        running.put(service("web", ["10.231.42.164"], ["10.19.20.201"]))
        yield running


@pytest.fixture
def config(tmp_path: Path, server: ApiServer) -> Config:
    return Config(kubeconfig=str(tmp_path / "kubelet.conf"), node_name="worker-1")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[StandInKernel]:
    made = fresh_kernel()
    monkeypatch.setattr(diff, "Kernel", made)
    monkeypatch.setattr(diff, "proxy_mode", lambda *_, **__: ProxyMode("ipvs"))
    return made


def nothing_noted(text: str) -> None:
    raise AssertionError(text)


# 1. Looking once


def test_a_snapshot_is_what_the_server_tells_now(config: Config, server: ApiServer) -> None:
    server.put(node("10.240.9.0/24", name="worker-2"))
    server.put_raw("Service", "default", "odd", {"metadata": {"name": "ODD"}})
    notes: list[str] = []
    seen = diff.snapshot(Api(Path(config.kubeconfig)), config, notes.append)
    assert (set(seen.services), seen.node.name) == ({"default/web"}, "worker-1")
    listed = [request for request in server.requests if request.resource in ("nodes", "services")]
    assert [request.verb for request in listed] == ["list", "list"]
    (note,) = notes
    assert note.startswith("skipped one of the API server's services: ")


@pytest.mark.parametrize(
    ("happens", "error", "why"),
    [
        (
            lambda server: server.delete("Node", "", "worker-1"),
            RefusedError,
            r"^API server: has no Node worker-1 \(set nodeName if the Node has another name\)$",
        ),
        (
            lambda server: server.fail(403, resource="services"),
            ApiError,
            "lacks the permission to list services",
        ),
        (lambda server: server.truncate_lists(), RefusedError, "broke"),
        (lambda server: server.stop(), ApiError, "Connection refused"),
    ],
    ids=["no Node", "Services are not allowed", "a list breaks off", "no server"],
)
def test_a_snapshot_that_cannot_be_had_says_why(
    happens: Callable[[ApiServer], object],
    error: type[RefusedError],
    why: str,
    config: Config,
    server: ApiServer,
) -> None:
    happens(server)
    with pytest.raises(error, match=why):
        diff.snapshot(Api(Path(config.kubeconfig)), config, nothing_noted)


def test_a_snapshot_without_credentials_is_refused(config: Config) -> None:
    Path(config.kubeconfig).unlink()
    with pytest.raises(RefusedError, match="is this node's kubelet set up"):
        diff.snapshot(Api(Path(config.kubeconfig)), config, nothing_noted)


# 2. What `run` would change


def test_pending_changes_are_those_that_run_would_make_and_are_not_made(
    command: Command, config: Config, kernel: type[StandInKernel]
) -> None:
    tables = kernel.backends["nft"].values()
    before = [table.save() for table in tables]
    changes = diff.pending_changes(config, nothing_noted)
    assert [name for name, _ in changes] == ["iptables-nft-restore", "ip6tables-nft-restore"]
    shown = "".join(f"# {name} --noflush\n{restore_input(change)}" for name, change in changes)
    assert "10.19.20.201" in shown
    file = written("config", {"kubeconfig": config.kubeconfig, "nodeName": config.node_name})
    assert command("diff", "--config", file)[:2] == (1, shown)
    assert [table.save() for table in tables] == before
    for (_, change), table in zip(changes, tables):
        table.restore(restore_input(change))
    assert command("diff", "--config", file)[:2] == (0, "")


def test_pending_changes_of_a_node_without_a_pod_cidr_are_refused(
    config: Config, server: ApiServer, kernel: type[StandInKernel]
) -> None:
    server.put(node())
    with pytest.raises(RefusedError, match="run would wait: Node worker-1 has no pod CIDR yet"):
        diff.pending_changes(config, nothing_noted)


# 3. How it is shown


def test_what_goes_is_red_and_what_comes_is_green() -> None:
    shown = coloured_change(CHANGE)
    colours = [line[:5] if line.startswith("\x1b") else "" for line in shown.splitlines()]
    red, green = "\x1b[31m", "\x1b[32m"
    assert colours == ["", "", "", red, green, green, red, ""]
    # Without the colours it is the same input.
    assert re.sub(r"\x1b\[\d+m", "", shown) == CHANGE
