"""What rules ask of a packet; test_trace.py and the kernel (test_tracer.py) walk whole tables."""

from __future__ import annotations

import pytest

from ipvs_node_agent.nat.matches import Packet, is_by, parsed

POD = Packet("10.0.0.7", "10.19.0.1", "tcp", 80, interface="cali1", to_host=True, mark=0x4000)
HOST = Packet("10.19.0.1", "10.19.0.1", "tcp", 80, local=True)
POD6 = Packet("fd00::7", "fd00:19::1", "udp", 53)
TO_ITSELF = POD._replace(source=POD.destination)
NOBODY_KNOWS = POD._replace(port=None, interface=None, to_host=None, doubtful=0x4000)

# By the packet: what matches it, and what does not. Each is tried with a `!` as well, where that
# may stand in front.
CASES = {
    POD: [
        ("", ["-p udp -j X"]),
        ("-s 10.0.0.0/24", ["-s 10.0.1.0/24"]),
        ("-d 10.19.0.1/32", ["-d 10.19.0.2/32", "-d 10.19.0.0/32"]),
        ("-d 10.0.0.1/255.0.0.255", ["-d 10.0.0.2/255.0.0.255"]),
        ("-i cali1", ["-i cali", "-i cali12"]),
        ("-i cali+", ["-i veth+"]),
        ("-p tcp", ["-p udp", "-p 17", "-p icmp"]),
        ("-p 6", []),
        ("-p tcp -m tcp --dport 80", ["-p tcp -m tcp --dport 81", "-p udp -m udp --dport 80"]),
        ("-p tcp -m tcp --dport 79:81", ["-p tcp -m tcp --dport 81:90"]),
        ("-p tcp -m tcp ! --dport 81", ["-p tcp -m tcp ! --dport 80"]),
        ("-p tcp -m multiport --dports 22,70:90", ["-p tcp -m multiport --dports 22,81:90"]),
        (
            "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN",
            ["-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK RST", "-p tcp -m tcp --tcp-flags ALL ALL"],
        ),
        ("-p tcp -m tcp --tcp-flags FIN,RST NONE", ["-p tcp -m tcp --tcp-flags SYN NONE"]),
        ("-m addrtype --dst-type LOCAL", ["-m addrtype ! --dst-type LOCAL"]),
        ("-m addrtype ! --src-type LOCAL", ["-m addrtype --src-type LOCAL"]),
        ("-m conntrack --ctstate NEW", ["-m conntrack --ctstate RELATED,ESTABLISHED"]),
        ("-m state --state INVALID,NEW", ["-m conntrack --ctstate INVALID"]),
        ("-m mark --mark 0x4000/0x4000", ["-m mark --mark 0x0", "-m mark --mark 0x1/0x1"]),
        (
            "-m set ! --match-set KUBE-LOOP-BACK dst,dst,src",
            ["-m set --match-set KUBE-6-LOOP-BACK dst"],
        ),
        ("-m comment --comment -j", ['-p udp -m comment --comment "! -p tcp \\" -j X"']),
    ],
    HOST: [
        ("-m addrtype --src-type LOCAL", ["-i cali+"]),
        ("-m addrtype --src-type LOCAL,BROADCAST", []),
    ],
    POD6: [
        ("-s fd00::/64 -d fd00:19::1/128", ["-d fd00:19::2/128", "-p tcp"]),
        ("-p udp -m udp --dport 53", ["-p udp -m udp --dport 54"]),
    ],
}


@pytest.mark.parametrize(
    ("packet", "rule", "held"),
    [
        (packet, rule, held)
        for packet, cases in CASES.items()
        for rule, others in cases
        for held, some in ((True, [rule]), (False, others))
        for rule in some
    ],
)
def test_what_a_packet_matches(packet: Packet, rule: str, held: bool) -> None:
    assert parsed(f"{rule} -j DNAT".strip()).holds(packet, packet.mark) is held


@pytest.mark.parametrize("option", ["-s 10.0.0.0/24", "-d 10.19.0.1/32", "-i cali+", "-p tcp"])
def test_a_negation_is_the_opposite(option: str) -> None:
    assert parsed(f"{option} -j ACCEPT").holds(POD) is True
    assert parsed(f"! {option} -j ACCEPT").holds(POD) is False


@pytest.mark.parametrize(
    ("rule", "packet", "why"),
    [
        ("-p tcp -m tcp --dport 80", NOBODY_KNOWS, "more than is known of the packet"),
        ("-p tcp -m multiport --dports 1,2", NOBODY_KNOWS, "more than is known"),
        ("-i eth0", NOBODY_KNOWS, "more than is known"),
        ("! -i eth0", NOBODY_KNOWS, "more than is known"),
        ("! -o docker0", POD, "more than is known"),
        ("-m addrtype --dst-type LOCAL", NOBODY_KNOWS, "more than is known"),
        ("-m mark --mark 0x4000/0x4000", NOBODY_KNOWS, "more than is known"),
        ("-m set --match-set A dst,dst", POD, "the match set --match-set A dst,dst, which"),
        ("-m set --match-set KUBE-LOOP-BACK dst,dst,src", TO_ITSELF, "more than is known"),
        ("-m set ! --match-set A dst", POD, "the match set ! --match-set A dst, which"),
        ("-m socket", POD, "the match socket, which is not known"),
        ("-m statistic --mode random --probability 0.5", POD, "the match statistic --mode random"),
        ("-p tcp -m tcp --sport 1024", POD, "the match tcp --sport"),
        ("-m addrtype --dst-type UNICAST", POD, "more than is known"),
        ("-m conntrack --ctstate RELATED,DNAT", POD, "more than is known"),
        ("-f", POD, "the match -f, which"),
        ("-p tcp -m tcp --dport many", POD, "the match tcp --dport many, which"),
        ("-s somewhere", POD, "the match -s somewhere, which"),
        ("-m mark --mark red", POD, "the match mark --mark red, which"),
    ],
)
def test_what_is_not_known_is_said_and_not_guessed(rule: str, packet: Packet, why: str) -> None:
    made = parsed(f"{rule} -j ACCEPT")
    assert made.holds(packet, packet.mark, packet.doubtful) is None
    assert why in made.unknown


@pytest.mark.parametrize("rest", ["-m conntrack --ctstate NEW", "-m mark --mark 0x4000/0x4000"])
def test_what_is_not_known_is_not_known_whatever_else_holds(rest: str) -> None:
    for rule in (f"{rest} -m set --match-set A dst", f"-m set --match-set A dst {rest}"):
        assert parsed(f"{rule} -j ACCEPT").holds(POD, POD.mark) is None


def test_what_is_not_known_does_not_matter_where_the_rest_says_no() -> None:
    assert parsed("-p udp -m set --match-set A dst -j ACCEPT").holds(POD) is False


@pytest.mark.parametrize(
    ("rule", "target", "goes", "to", "marking"),
    [
        ("-j DNAT --to-destination 10.0.0.1:80", "DNAT", False, "10.0.0.1:80", None),
        ("-p tcp -j REDIRECT --to-ports 15001", "REDIRECT", False, "15001", None),
        ("-g chain/1", "chain/1", True, "", None),
        ("-j MARK --set-xmark 0x4000/0x4001", "MARK", False, "", (0x4001, 0x4000)),
        ("-j MARK --set-xmark 0x1", "MARK", False, "", (0xFFFFFFFF, 1)),
        ("-s 10.0.0.0/8", "", False, "", None),
    ],
)
def test_where_a_rule_leads(
    rule: str, target: str, goes: bool, to: str, marking: tuple[int, int] | None
) -> None:
    made = parsed(rule)
    assert (made.target, made.goes, made.to, made.marking) == (target, goes, to, marking)


@pytest.mark.parametrize("text", ["", "!", "-m", "-j", '"', "-d", "! ! -s", "-m tcp --dport", "\\"])
def test_no_text_raises(text: str) -> None:
    parsed(text).holds(POD)


def test_a_plus_at_the_end_stands_for_any_more_characters() -> None:
    assert is_by("eth0", "eth+")
    assert is_by("eth", "eth+")
    assert not is_by("eth0", "eth")
