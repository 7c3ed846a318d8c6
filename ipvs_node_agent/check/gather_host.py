"""Gathers what `check` knows of the node itself, changing nothing in it.

Each look has a time limit, and what cannot be seen is left out: none of them raises.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Callable

from ipvs_node_agent.check.facts import HostFacts, KubeProxy, Listener, TableFacts, Unit
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.host.kubeproxy import page
from ipvs_node_agent.host.procfs import (
    agent_processes,
    listener_on,
    lock_holder,
    process_called,
    users_listening_on,
)
from ipvs_node_agent.host.rundir import directory, own_names
from ipvs_node_agent.iptables.backends import Kernel, detect_backend, filters_found, installed
from ipvs_node_agent.iptables.command import TableError, find, foreign, launch
from ipvs_node_agent.iptables.proxymode import proxy_mode
from ipvs_node_agent.iptables.table import BACKENDS, NFT, KernelTable, may_read
from ipvs_node_agent.model.addresses import FAMILIES, parse_host_port, reached_at
from ipvs_node_agent.nat.ahead import MOST_JUMPS
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.saveformat import parse_save
from ipvs_node_agent.nft import listing
from ipvs_node_agent.processes.launcher import Launcher

_CAP_NET_ADMIN = 12
_COMMAND_TIMEOUT = 10.0
_UNITS = ("ipvs-node-agent", "nftables", "netfilter-persistent", "ufw", "firewalld")
# Of such a table iptables-nft-save shows the rest, and nothing can be written where they are.
_FOREIGN_BASE_CHAINS = "# Table `nat' contains incompatible"
_SETTINGS = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/vs/conntrack",
    "netfilter/nf_conntrack_tcp_loose",
    "netfilter/nf_conntrack_tcp_be_liberal",
)


def look_at_host(config: Config, doing: Callable[[str], None]) -> HostFacts:
    """What there is to see on this node; `doing` is told what takes its time."""
    may_program = _may_program()
    names, mark, options = own_names(config.chains), config.chains.mark_masquerade, config.iptables
    with closing(launch()) as launcher:
        doing("reading the tables of iptables")
        kubelets = _kubelet_backend(launcher) if may_program else None
        backend = kubelets or NFT if options.backend == "auto" else options.backend
        kernel = Kernel(launcher, options, names, mark, backend)
        tables = tuple(_tables(launcher, config, names)) if may_program else ()
        filters = filters_found(kernel.filters()) if may_program else {}
        kernel.close()
        doing("asking kube-proxy for its mode")
        proxy = _proxy(launcher, backend)
    doing("looking at services and processes")
    return HostFacts(
        may_program=may_program,
        kubelet_backend=kubelets,
        backend=backend,
        tables=tables,
        filters=filters,
        proxy=proxy,
        holder=lock_holder(directory() / "lock"),
        agents=tuple(agent_processes()),
        units=_units(),
        listener=_listener(config.metrics_bind_address),
        flushing_file=bool(_search("/etc/nftables.conf", r"^\s*flush\s+ruleset")),
        saved_rules=any(
            _search(f"/etc/iptables/rules.v{version}", rf"^:{config.chains.output}\b")
            for version in (4, 6)
        ),
        conntrack=find("conntrack") is not None,
        base_chains=listing.base_chains() if may_program else (),
        settings={
            key: text.strip() for key in _SETTINGS if (text := _text(f"/proc/sys/net/{key}"))
        },
    )


def _may_program() -> bool:
    found = _search("/proc/self/status", r"^CapEff:\s*([0-9a-f]+)")
    return found is None or bool(int(found[1], 16) >> _CAP_NET_ADMIN & 1)


def _kubelet_backend(launcher: Launcher) -> str | None:
    try:
        return detect_backend(launcher)
    except TableError:
        return None  # The nat tables, which are read by the same commands, say why.


def _tables(launcher: Launcher, config: Config, names: frozenset[str]) -> Iterator[TableFacts]:
    owns = owner(names)
    for backend in BACKENDS:
        for family in FAMILIES:
            if not may_read(family, backend):
                yield TableFacts(family, backend)
                continue
            if not installed(family, backend) and backend != config.iptables.backend:
                continue
            try:
                text = KernelTable(launcher, family, backend, config.iptables, owns).save()
                if _FOREIGN_BASE_CHAINS in text:
                    raise foreign(f"{family.command}-{backend}-save")
            except TableError as error:
                yield TableFacts(family, backend, error=error)
                continue
            first = {
                name: tuple(islice(_rules(text, name), MOST_JUMPS + 1))
                for name in ("PREROUTING", "OUTPUT")
            }
            masquerading = any(
                rule.endswith("-j KUBE-POSTROUTING") for rule in _rules(text, "POSTROUTING")
            )
            yield TableFacts(family, backend, parse_save(text, owns), first, masquerading)


def _rules(text: str, chain: str) -> Iterator[str]:
    """The rules of a chain in a saved table, which may have 50 MB."""
    begin = f"\n-A {chain} "
    at = text.find(begin)
    while at >= 0:
        start = at + len(begin)
        end = text.find("\n", start)
        yield text[start:end]
        at = text.find(begin, end)


def _proxy(launcher: Launcher, backend: str) -> KubeProxy:
    found = proxy_mode(launcher, backend=backend)
    return KubeProxy(
        answer=found.mode,
        doubt=found.doubt,
        device=os.path.exists("/proc/sys/net/ipv4/conf/kube-ipvs0"),
        nftables="kube-proxy" in (listing.tables() or ()),
        process=process_called("kube-proxy"),
    )


def _said(*command: str) -> str:
    """What a command prints; empty where it fails or is not there."""
    path = find(command[0])
    if path is None:
        return ""
    try:
        said = subprocess.check_output(  # noqa: S603  (no shell, and no word from outside)
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_COMMAND_TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return said.decode("utf-8", "replace")


def _units() -> Mapping[str, Unit] | None:
    # sd_booted(3)
    if not Path("/run/systemd/system").is_dir():
        return None
    wanted = "Id,LoadState,ActiveState,UnitFileState,MainPID,StatusText"
    names, units = (f"{name}.service" for name in _UNITS), dict[str, Unit]()
    for block in _said("systemctl", "show", f"--property={wanted}", *names).split("\n\n"):
        said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        number = said.get("MainPID", "0")
        units[said.get("Id", "")] = Unit(
            said.get("LoadState", ""),
            said.get("ActiveState", ""),
            said.get("UnitFileState", ""),
            int(number) if number.isdigit() else 0,
            said.get("StatusText", ""),
        )
    return units


def _listener(address: str) -> Listener | None:
    if not address:
        return None
    host, port = parse_host_port(address)
    host = "127.0.0.1" if host == "localhost" else host
    found = listener_on(host, port)
    if found is None:
        return None
    ours = "ipvs_node_agent_" in page((reached_at(host), port), "/metrics")
    ours = ours and users_listening_on(host, port) <= {0, os.geteuid()}
    return Listener(found.number, found.program, ours)


def _search(path: str, pattern: str) -> re.Match[str] | None:
    return re.search(pattern, _text(path), re.MULTILINE)


def _without_waiting(path: str, flags: int) -> int:
    """Opens it; a FIFO would wait for its writer for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _text(path: str) -> str:
    """The beginning of a file; empty where it cannot be read."""
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            return (file.read(1 << 20) or b"").decode("utf-8", "replace")
    except OSError:
        return ""
