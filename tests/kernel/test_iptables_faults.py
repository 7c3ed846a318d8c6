"""iptables that fails in every way: said in a line, tried again, and over once it is mended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from ipvs_node_agent.model.addresses import FAMILIES, IPV4, IPV6
from tests.kernel.conftest import Bed
from tests.support.cluster import service
from tests.support.faults import ANY_BACKEND, LONG, Commands, locked
from tests.support.processes import descendants
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

ONE = ("10.19.20.201", "one", "10.231.42.164")
ONE6 = ("fd00:19::201", "one", "fd00:231::164")
TWO = ("10.19.22.57", "two", "10.231.2.62")
TWO6 = ("fd00:19::257", "two", "fd00:231::62")
SERVICES = [service("one", [ONE[2], ONE6[2]], [ONE[0], ONE6[0]])]
SECOND = service("two", [TWO[2], TWO6[2]], [TWO[0], TWO6[0]])

# As `TIME_LIMIT` of iptables/command.py, which is short where nobody has the time.
TIME_LIMIT = 30 if LONG else 1
HURRIED = (
    "import sys; from ipvs_node_agent import cli; from ipvs_node_agent.iptables import command;"
    f" command.TIME_LIMIT = {TIME_LIMIT}; sys.exit(cli.main())"
)


class Fault(NamedTuple):
    """What becomes of iptables-restore, and what is to be said about it."""

    script: str
    said: str


FAULTS = {
    "missing": Fault("", "not found (apt install iptables)"),
    "failing": Fault("echo 'iptables: the kernel is in a bad mood.' >&2; exit 1", "the kernel is"),
    "killed by the OOM killer": Fault("kill -KILL $$", "killed by signal 9"),
    "hanging": Fault("exec sleep 600", "did not end within"),
    "printing megabytes": Fault(
        "yes output | head -c 20000000; yes complaint | head -c 20000000 >&2; exit 1", "complaint"
    ),
    "printing without end": Fault("exec yes", "File too large"),
}


@pytest.fixture
def commands(bed: Bed, tmp_path: Path) -> Commands:
    """The agent's own commands of iptables."""
    made = Commands(tmp_path / "sbin")
    bed.agent.wrapper = made.wrapper
    return made


@ANY_BACKEND
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_said_in_a_line_and_tried_again_and_ends_when_it_is_mended(
    bed: Bed, commands: Commands, fault: Fault
) -> None:
    """In IPv4 alone; IPv6 goes on."""
    bed.agent.program = ["-c", HURRIED]
    bed.agent.configure(
        {**bed.settings, "iptables": {"backend": bed.backend, "lockWaitSeconds": 1}}
    )
    for each in SERVICES:
        bed.api.put(each)
    bed.agent.start()
    bed.expect([ONE], [ONE6])
    before = bed.ours(IPV4)
    command = f"iptables-{bed.backend}-restore"
    if fault.script:
        commands.replace(command, fault.script)
    else:
        commands.remove(command)

    bed.api.put(SECOND)
    eventually(
        lambda: any("cannot program" in line and fault.said in line for line in errors(bed)),
        f"{fault.said!r} in one of {errors(bed)}",
        timeout=2 * TIME_LIMIT + 20,
    )
    eventually(lambda: any(TWO6[0] in line for line in bed.ours(IPV6)), timeout=TIME_LIMIT + 15)
    assert bed.ours(IPV4) == before
    if fault.script.endswith("exit 1"):
        # A few at once (the table may be another one than believed, a Service may be to blame),
        # then after longer and longer pauses.
        eventually(lambda: has_growing_pauses(commands.calls(command)), "pauses that grow")
    assert len(errors(bed)) == 1
    assert len(errors(bed)[0]) < 1000

    commands.mend(command)
    bed.agent.said("IPv4: works again")
    bed.expect([ONE, TWO], [ONE6, TWO6])
    eventually(lambda: len(descendants(bed.agent.pid)) == 1, "no process but the one that starts")
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
    options = {"backend": bed.backend, "lockWaitSeconds": patience}
    bed.agent.configure({**bed.settings, "iptables": options})
    for each in SERVICES:
        bed.api.put(each)
    bed.agent.start()
    bed.expect([ONE], [ONE6])
    before = bed.ours(IPV4), bed.ours(IPV6)
    with locked(Path("/run/xtables.lock")):
        bed.api.put(SECOND)
        if bed.backend == "nft":
            bed.expect([ONE, TWO], [ONE6, TWO6])
            return
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            running = descendants(bed.agent.pid)
            # What starts commands, and one command.
            assert len(running) <= 2, running
            assert bed.agent.running
            time.sleep(0.05)
        assert (bed.ours(IPV4), bed.ours(IPV6)) == before
        bed.agent.said("another program holds /run/xtables.lock")
    freed = time.monotonic()
    for family, entry in zip(FAMILIES, (TWO, TWO6)):
        eventually(lambda: any(entry[0] in line for line in bed.ours(family)))  # noqa: B023
    took = time.monotonic() - freed
    print(f"programmed {took:.2f} s after {seconds} s")
    # A second, and another one for reading the tables on a busy machine.
    assert took < 2
    bed.expect([ONE, TWO], [ONE6, TWO6])
    assert len(errors(bed)) <= 2, "once for each family"
