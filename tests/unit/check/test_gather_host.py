"""What is gathered of the node without a kernel's tables: units, files, settings, pods' routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.check import gather_host
from ipvs_node_agent.check.facts import HostFacts, Unit
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.iptables.proxymode import ProxyMode
from ipvs_node_agent.nft import listing

DOUBT = "two answers"
UNPRIVILEGED = "Name:\tpython3\nCapEff:\t0000000000000400\n"
UNITS = """\
Id=ipvs-node-agent.service
LoadState=loaded
ActiveState=active
UnitFileState=enabled
MainPID=4711
StatusText=In sync; a=b

Id=ufw.service
LoadState=not-found
ActiveState=inactive
UnitFileState=
MainPID=x
"""


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The files of a node whose user may not program its tables; nothing runs there."""
    texts = {"/proc/self/status": UNPRIVILEGED}
    monkeypatch.setattr(gather_host, "_text", lambda path: texts.get(path, ""))
    monkeypatch.setattr(gather_host, "_said", lambda *_: "")
    monkeypatch.setattr(gather_host, "agent_processes", tuple)
    monkeypatch.setattr(gather_host, "proxy_mode", lambda *_, **__: ProxyMode(None, DOUBT))
    monkeypatch.setattr(listing, "tables", lambda: None)
    for name in ("process_called", "lock_holder"):
        monkeypatch.setattr(gather_host, name, lambda *_: None)
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) in texts)
    return texts


def gathered() -> HostFacts:
    return gather_host.look_at_host(Config(metrics_bind_address=""), lambda _: None)


def test_without_rights_nothing_is_asked_of_the_kernel(files: dict[str, str]) -> None:
    found = gathered()
    assert (found.may_program, found.tables, found.units) == (False, (), None)
    assert (found.proxy.answer, found.proxy.doubt, found.proxy.nftables) == (None, DOUBT, False)


def test_units_are_read_in_the_words_of_systemctl(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files["/run/systemd/system"] = ""
    said = {"systemctl": UNITS}
    monkeypatch.setattr(gather_host, "_said", lambda command, *_: said[command])
    monkeypatch.setattr(listing, "tables", lambda: frozenset({"x", "kube-proxy"}))
    found = gathered()
    assert found.units == {
        "ipvs-node-agent.service": Unit("loaded", "active", "enabled", 4711, "In sync; a=b"),
        "ufw.service": Unit(),
    }
    assert found.proxy.nftables


@pytest.mark.parametrize(
    ("path", "text", "fact", "value"),
    [
        ("/etc/nftables.conf", "#!/usr/sbin/nft -f\nflush ruleset\n", "flushing_file", True),
        ("/etc/nftables.conf", "# flush ruleset\n", "flushing_file", False),
        ("/etc/iptables/rules.v6", "*nat\n:IPVS_OUTPUT - [0:0]\n", "saved_rules", True),
        ("/etc/iptables/rules.v4", "*nat\n:IPVS_OUTPUT2 - [0:0]\n", "saved_rules", False),
        ("/proc/sys/net/ipv4/ip_forward", "0\n", "settings", {"ipv4/ip_forward": "0"}),
    ],
)
def test_files_of_the_node_are_looked_into(
    files: dict[str, str], path: str, text: str, fact: str, value: Any
) -> None:
    files[path] = text
    assert getattr(gathered(), fact) == value
