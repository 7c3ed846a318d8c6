"""Nodes that run out of something: the rules stay; the agent goes on or can be started again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import OTHER, WEB, Bed
from tests.support.faults import ANY_BACKEND
from tests.support.tables import saved
from tests.support.waiting import eventually

THIRD = ("10.19.20.203", "third", "10.231.9.10")
pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]


@pytest.fixture
def working(bed: Bed) -> Bed:
    """A node whose agent has been told of a Service."""
    bed.put(WEB)
    bed.agent.start()
    return bed


# 1. The file system below /run


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """An empty file system at `directory`, before whatever is there."""
    directory.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(directory)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@ANY_BACKEND
def test_with_a_full_disk_everything_but_the_memory_of_names_works(bed: Bed) -> None:
    with mounted(bed.agent.runtime, "size=4k"):
        (bed.agent.runtime / "filler").write_bytes(b"x" * 4096)
        bed.put(WEB)
        bed.agent.start()
        bed.put(OTHER)
        bed.expect(WEB, OTHER)
        assert bed.agent.log.count("cannot save the chains' names") == 1
        # Even so the old names are known as long as the agent lives.
        bed.reload(chains={"prerouting": "MY_PRE", "output": "MY_OUT"})
        bed.wait_for_lines(IPV4, [])
        assert "-A PREROUTING -j MY_PRE" in saved(bed.namespace, IPV4, bed.backend)
        bed.reload(chains={})
        bed.expect(WEB, OTHER)
        eventually(lambda: not any("MY_" in x for x in saved(bed.namespace, IPV4, bed.backend)))
        # Killed, and started again on the full disk.
        bed.agent.stop(signal.SIGKILL)
        bed.agent.start()
        bed.expect(WEB, OTHER)


@ANY_BACKEND
def test_on_a_read_only_run_a_running_agent_goes_on_and_a_new_one_says_why_not(
    working: Bed,
) -> None:
    with mounted(working.agent.runtime, "ro"):
        working.put(OTHER)
        working.expect(WEB, OTHER)
        working.reload(masquerade="HostOnly")
        working.expect(WEB, OTHER, masquerade="HostOnly")
        assert working.agent.stop() == 0
        done = working.agent.call("run")
        why = f"cannot open {working.agent.runtime}/lock: Read-only file system"
        assert (done.returncode, done.stderr) == (3, f"ipvs-node-agent: run: {why}\n")
        working.expect(WEB, OTHER, masquerade="HostOnly")
    working.delete("other")
    working.agent.start()
    working.expect(WEB, masquerade="HostOnly")


def test_where_iptables_cannot_lock_on_a_read_only_run_it_goes_on_when_it_can(bed: Bed) -> None:
    """iptables-nft has no lock."""
    own_run = 'mount --bind /run /run && exec "$@"'
    bed.agent.wrapper = ["unshare", "--mount", "sh", "-c", own_run, "sh"]
    bed.put(WEB)
    bed.agent.start()

    def remount(how: str) -> None:
        enter = ["nsenter", f"--target={bed.agent.pid}", "--mount", "--root"]
        subprocess.run([*enter, "mount", "-o", f"remount,bind,{how}", "/run"], check=True)

    # One that is there already can be locked all the same.
    Path("/run/xtables.lock").unlink(missing_ok=True)
    remount("ro")
    bed.put(OTHER)
    if bed.backend == "legacy":
        bed.agent.said("IPv4: cannot program the kernel, trying again: iptables-legacy-restore: ")
        bed.agent.said("Read-only file system")
        bed.expect(WEB)
        assert bed.agent.log.count("ERROR") == 1
        remount("rw")
    bed.expect(WEB, OTHER)


# 2. Descriptors and memory


def limit(bed: Bed, which: int, soft: int) -> None:
    """Lowers or raises a limit of the running agent."""
    hard = resource.prlimit(bed.agent.pid, which)[1]
    resource.prlimit(bed.agent.pid, which, (soft if soft >= 0 else hard, hard))


@ANY_BACKEND
def test_without_file_descriptors_the_rules_stay_and_it_goes_on_when_there_are_some(
    working: Bed,
) -> None:
    used = {int(name) for name in os.listdir(f"/proc/{working.agent.pid}/fd")}
    free = min(set(range(len(used) + 1)) - used)
    limit(working, resource.RLIMIT_NOFILE, free)
    # The next command may be there already, and the one behind it cannot be started.
    working.put(OTHER)
    failed = "IPv4: cannot program the kernel, trying again: iptables"
    eventually(lambda: working.has(OTHER[0]) or failed in working.agent.log)
    working.put(THIRD)
    working.agent.said(failed)
    working.agent.said("Too many open files")
    assert working.has(WEB[0])
    assert not working.has(THIRD[0])
    # Another connection cannot be made either.
    working.api.drop_watches()
    working.agent.said("trying again; the rules stay as they are")
    assert working.agent.running
    limit(working, resource.RLIMIT_NOFILE, -1)
    working.agent.said("IPv4: works again")
    working.expect(WEB, OTHER, THIRD)
    working.delete("web")
    working.expect(OTHER, THIRD)


@ANY_BACKEND
def test_without_memory_it_ends_or_goes_on_and_the_rules_stay(working: Bed) -> None:
    statm = Path(f"/proc/{working.agent.pid}/statm").read_text()
    size = int(statm.split()[0]) * resource.getpagesize()
    limit(working, resource.RLIMIT_AS, size + (1 << 20))
    many = [(f"10.20.{n // 250}.{n % 250 + 1}", f"many-{n}", "10.231.7.7") for n in range(300)]
    working.put(*many)
    last = many[-1][0]
    eventually(lambda: not working.agent.running or working.has(last), "the end of one of them")
    assert working.has(WEB[0])
    assert "Traceback" not in working.agent.log
    # The service manager starts it again.
    if not working.agent.running:
        working.agent.wait()
        working.agent.start()
    eventually(lambda: working.has(last))
    eventually(lambda: working.agent.call("diff").returncode == 0)


@ANY_BACKEND
def test_sockets_are_closed_when_the_configuration_is_read_again(working: Bed) -> None:
    def sockets() -> int:
        links = Path(f"/proc/{working.agent.pid}/fd").iterdir()
        return sum("socket:" in str(link.readlink()) for link in links if link.is_symlink())

    working.reload()
    working.settled()
    before = sockets()
    for _ in range(20):
        working.reload()
    eventually(lambda: sockets() <= before + 1, f"{sockets()} sockets, {before} before")


# 3. The clock

# The kernel's own cannot be set for one process alone, so it is Python's that is.
STEPPED = """
import sys, time
from pathlib import Path

step, real, real_ns = Path({path!r}), time.time, time.time_ns
time.time = lambda: real() + int(step.read_text())
time.time_ns = lambda: real_ns() + int(step.read_text()) * 10**9

from ipvs_node_agent.cli import main

sys.exit(main())
"""


@ANY_BACKEND
def test_a_clock_that_is_set_an_hour_forth_and_back_changes_nothing(
    bed: Bed, tmp_path: Path
) -> None:
    step = tmp_path / "step"

    def set_by(seconds: int) -> None:
        # In one piece, as it is read at any moment.
        fresh = step.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(step)

    set_by(0)
    bed.agent.program = ["-c", STEPPED.format(path=str(step))]
    bed.put(WEB)
    bed.agent.start()
    for seconds in (3600, -3600):
        set_by(seconds)
        bed.put(OTHER)
        bed.expect(WEB, OTHER)
        bed.restore(IPV4, "*nat\n:IPVS_OUTPUT - [0:0]\nCOMMIT\n")
        bed.expect(WEB, OTHER)
        bed.api.drop_watches()
        bed.delete("other")
        bed.expect(WEB)
    lines = bed.agent.log.splitlines()
    hours = {line[11:13] for line in lines}
    assert 2 <= len(hours) <= 6, "the steps are seen in the log"
    assert not any("ERROR" in line for line in lines)
