"""The kernel's text about IPVS, as a Debian 13 with kube-proxy prints it, becomes values."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipvs_node_agent.host import ipvs
from ipvs_node_agent.host.ipvs import RealServer, VirtualServer, parse, virtual_servers
from ipvs_node_agent.model.addresses import parse_address

HEAD = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
"""
TABLE = f"""\
{HEAD}TCP  0AE7CA8D:0050 rr  
  -> 0AF00382:1F90      Masq    1      12         345       
  -> 0AF00283:1F90      Masq    0      1          0         
TCP  0AE70001:01BB rr  
SCTP  0A130103:0F1C mh  
UDP  0A130101:0035 wlc ops  persistent 2700000 FFFFFFFF
  -> 0AF00382:0035      Tunnel  0      0          0         
TCP  [fd00:0010:0019:0020:0000:0000:0000:0201]:0050 rr 
  -> [fd00:0010:0240:0003:0000:0000:0000:0002]:1F90      Masq    1      1          3         
UDP  [fd00:0010:0019:0020:0000:0000:0000:0009]:0035 rr persistent 25000 40000000
FWM  00000007 rr 
  -> 0AF00382:0050      Route   1      0          0         
TCP  CB007101:7EF0 rr  
  -> 0AF00382:1F90      Masq    1      0          6         
"""  # noqa: W291


def virtual(
    protocol: str, address: str, port: int, scheduler: str, *servers: tuple[str, int, int, int, int]
) -> VirtualServer:
    made = tuple(RealServer(parse_address(ip), *rest) for ip, *rest in servers)
    return VirtualServer(protocol, parse_address(address), port, scheduler, made)


def test_each_virtual_server_has_its_real_servers_and_one_by_mark_is_left_out() -> None:
    pod = "10.240.3.130"
    assert parse(TABLE) == (
        virtual(
            *("tcp", "10.231.202.141", 80, "rr"),
            (pod, 8080, 1, 12, 345),
            ("10.240.2.131", 8080, 0, 1, 0),
        ),
        virtual("tcp", "10.231.0.1", 443, "rr"),
        virtual("sctp", "10.19.1.3", 3868, "mh"),
        virtual("udp", "10.19.1.1", 53, "wlc", (pod, 53, 0, 0, 0)),
        virtual("tcp", "fd00:10:19:20::201", 80, "rr", ("fd00:10:240:3::2", 8080, 1, 1, 3)),
        virtual("udp", "fd00:10:19:20::9", 53, "rr"),
        virtual("tcp", "203.0.113.1", 32496, "rr", (pod, 8080, 1, 0, 6)),
    )


@pytest.mark.parametrize("text", ["", HEAD, "TCP  nonsense rr\n  -> 0AF00382:1F90 Masq 1 0 0\n"])
def test_without_one_there_is_none(text: str) -> None:
    assert parse(text) == ()


def test_a_kernel_without_ipvs_is_told_from_one_that_has_no_virtual_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipvs, "_TABLE", tmp_path / "ip_vs")
    assert virtual_servers() is None
    (tmp_path / "ip_vs").write_text(HEAD)
    assert virtual_servers() == ()
    (tmp_path / "ip_vs").write_text(TABLE)
    assert virtual_servers() == parse(TABLE)
