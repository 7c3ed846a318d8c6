"""iptables that fails in every way: said in a line, tried again, and over once it is mended.

It does not work, refuses one Service's rules, or cannot read a table.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4, IPV6
from tests.kernel.conftest import OTHER, OTHER6, WEB, WEB6, Bed
from tests.support.agentprocess import altered
from tests.support.faults import ANY_BACKEND, LONG, Commands, locked
from tests.support.processes import descendants
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

# Short where nobody has the time, for what has no end of its own.
HANGS, TIME_LIMIT = "did not end within", 30.0
SHORT = TIME_LIMIT if LONG else 2.0

# What becomes of iptables-restore, and what is to be said about it.
FAULTS = {
    "missing": ("", "not found (apt install iptables)"),
    "failing": ("echo 'iptables: the kernel is in a bad mood.' >&2; exit 1", "the kernel is"),
    "killed by the OOM killer": ("kill -KILL $$", "killed by signal 9"),
    "hanging": ("exec sleep 600", HANGS),
    "printing megabytes": (
        "yes output | head -c 20000000; yes complaint | head -c 20000000 >&2; exit 1",
        "complaint",
    ),
    "printing without end": ("exec yes", "File too large"),
}


@ANY_BACKEND
@pytest.mark.parametrize(("script", "said"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_said_in_a_line_and_tried_again_and_ends_when_it_is_mended(
    bed: Bed, tmp_path: Path, script: str, said: str
) -> None:
    """In IPv4 alone; IPv6 goes on."""
    command = f"iptables-{bed.backend}-restore"
    limit = SHORT if said == HANGS else TIME_LIMIT
    bed.agent.program = altered({"iptables.command.TIME_LIMIT": limit})
    commands = Commands(tmp_path / "sbin")
    bed.agent.wrapper = commands.wrapper
    bed.configure(iptables={"backend": bed.backend, "lockWaitSeconds": 1})
    bed.put(WEB, WEB6)
    bed.agent.start()
    bed.expect(WEB, WEB6)
    before = bed.ours(IPV4)
    if script:
        commands.replace(command, script)
    else:
        commands.remove(command)

    bed.put(OTHER, OTHER6)
    eventually(
        lambda: any("cannot program" in line and said in line for line in errors(bed)),
        f"{said!r} in one of {errors(bed)}",
        timeout=2 * limit + 20,
    )
    eventually(lambda: bed.has(OTHER6[0]), timeout=limit + 15)
    assert bed.ours(IPV4) == before
    if script.endswith("exit 1"):
        # A few at once (the table may be another one than believed, a Service may be to blame),
        # then after longer and longer pauses.
        eventually(lambda: has_growing_pauses(commands.calls(command)), "pauses that grow")
    # A busy machine may stop the other family's commands for as long as the short limit.
    (error,) = (line for line in errors(bed) if "IPv4" in line or limit == TIME_LIMIT)
    assert len(error) < 1000

    commands.mend(command)
    bed.agent.said("IPv4: works again")
    bed.expect(WEB, OTHER, WEB6, OTHER6)
    # The one that starts commands, and in each family the next command that writes.
    eventually(lambda: len(descendants(bed.agent.pid)) == 3, "no process too many")
    assert bed.agent.running


def has_growing_pauses(calls: Sequence[float]) -> bool:
    """Whether there were pauses of over 0.2, 0.4 and 0.8 s, in this order."""
    pauses = iter(after - before for before, after in zip(calls, calls[1:]))
    return all(any(pause > least for pause in pauses) for least in (0.2, 0.4, 0.8))


def errors(bed: Bed) -> list[str]:
    """The agent's lines about errors."""
    return [line for line in bed.agent.log.splitlines() if "ERROR" in line]


def test_a_held_lock_is_waited_for_without_a_pile_and_programmed_once_it_is_free(
    bed: Bed,
) -> None:
    """Only legacy goes by the lock; nft is programmed meanwhile."""
    seconds, patience = (30, 5) if LONG else (3, 1)
    bed.configure(iptables={"backend": bed.backend, "lockWaitSeconds": patience})
    bed.put(WEB, WEB6)
    bed.agent.start()
    bed.expect(WEB, WEB6)
    before = bed.ours(IPV4), bed.ours(IPV6)
    with locked(Path("/run/xtables.lock")):
        bed.put(OTHER, OTHER6)
        if bed.backend == "nft":
            bed.expect(WEB, OTHER, WEB6, OTHER6)
            return
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            running = descendants(bed.agent.pid)
            # What starts commands, one command, and the other family's next one.
            assert len(running) <= 3, running
            assert bed.agent.running
            time.sleep(0.05)
        assert (bed.ours(IPV4), bed.ours(IPV6)) == before
        bed.agent.said("another program holds /run/xtables.lock")
    freed = time.monotonic()
    eventually(lambda: bed.has(OTHER[0]) and bed.has(OTHER6[0]))
    took = time.monotonic() - freed
    print(f"programmed {took:.2f} s after {seconds} s")
    # A second, and more for reading the tables on a busy machine.
    assert took < 4
    bed.expect(WEB, OTHER, WEB6, OTHER6)
    assert len(errors(bed)) <= 2, "once for each family"


# One Service whose rules the kernel refuses

BAD = ("10.19.66.66", "bad", "10.231.6.6")
# No valid Service gives a rule that every kernel refuses, so this command makes one of them such:
# the kernel takes MASQUERADE in no chain that PREROUTING or OUTPUT leads to.
SPOILING = r"""
[ -e $here/off ] && exec $real "$@"
sed '/-d 10.19.66.66\/32/s/-j DNAT.*/-j MASQUERADE/' | exec $real "$@"
"""


@pytest.mark.once("newest", "oldest")
def test_a_service_that_is_refused_is_left_out_named_and_tried_again_and_others_work(
    bed: Bed, tmp_path: Path
) -> None:
    bed.stand_in(tmp_path, f"iptables-{bed.backend}-restore", SPOILING)
    bed.put(BAD, WEB)
    bed.agent.start()
    bed.expect(WEB)
    bed.put(OTHER)
    bed.expect(WEB, OTHER)
    named = "default/bad: its IPv4 rules are left out, trying again: "
    assert bed.agent.log.count(named) == 1
    assert "default/web: its" not in bed.agent.log
    (tmp_path / "off").touch()
    eventually(lambda: bed.has(BAD[0]), "the rules of bad", 30)


# A table that iptables cannot read, although its command ends well

# A rule as only nft makes it, in the chain that iptables made: no iptables knows its set.
NATIVE = "add rule ip nat PREROUTING ip daddr { 9.9.9.9, 9.9.9.8 } tcp dport 80 dnat to 1.2.3.4:80"


@pytest.mark.once("newest", "oldest")
@pytest.mark.parametrize("backend", ["nft"])
def test_where_the_table_cannot_be_read_nothing_is_written_and_it_is_said(running: Bed) -> None:
    def nft(command: str) -> str:
        return running.namespace.run("nft", *command.split())

    nft(NATIVE)
    assert "*nat" not in running.namespace.run("iptables-nft-save", "-t", "nat")
    before = nft("-s list table ip nat")
    running.agent.said("cannot program the kernel, trying again: ")
    third = ("10.19.22.58", "third", "10.231.2.63")
    running.put(third)
    # A dozen tries, and looks for drift between them.
    for _ in range(3):
        told = running.agent.call("status", "-o", "json")
        assert told.returncode == 1
        assert "made with nft" in json.loads(told.stdout)["sentence"]
    running.agent.stop()
    cleaned = running.agent.call("cleanup")
    assert cleaned.returncode == 3
    assert "has rules made with nft" in cleaned.stderr
    assert nft("-s list table ip nat") == before
    running.agent.start(wait=False)
    (line,) = [x for x in nft("-a list chain ip nat PREROUTING").splitlines() if "9.9.9.9" in x]
    nft(f"delete rule ip nat PREROUTING handle {line.split()[-1]}")
    running.expect(WEB, OTHER, third)
