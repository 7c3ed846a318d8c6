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
from tests.kernel.conftest import Bed
from tests.support.cluster import service
from tests.support.faults import ANY_BACKEND
from tests.support.tables import saved
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]

ONE = ("10.19.20.201", "one", "10.231.42.164")
TWO = ("10.19.22.57", "two", "10.231.2.62")


def put(bed: Bed, *entries: tuple[str, str, str]) -> None:
    for external, name, cluster in entries:
        bed.api.put(service(name, [cluster], [external]))


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


# 1. The file system below /run


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[None]:
    """An empty file system at `directory`, before whatever is there."""
    directory.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", options, "none", str(directory))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@ANY_BACKEND
def test_with_a_full_disk_everything_but_the_memory_of_names_works(bed: Bed) -> None:
    put(bed, ONE)
    with mounted(bed.agent.runtime, "size=4k"):
        (bed.agent.runtime / "filler").write_bytes(b"x" * 4096)
        bed.agent.start()
        bed.expect([ONE])
        put(bed, TWO)
        bed.expect([ONE, TWO])
        assert bed.agent.log.count("cannot remember the chains' names") == 1
        # Even so the old names are known as long as the agent lives.
        bed.reload(chains={"prerouting": "MY_PRE", "output": "MY_OUT"})
        bed.wait_for_lines(IPV4, [])
        assert "-A PREROUTING -j MY_PRE" in saved(bed.namespace, IPV4, bed.backend)
        bed.reload(chains={})
        bed.expect([ONE, TWO])
        eventually(lambda: not any("MY_" in x for x in saved(bed.namespace, IPV4, bed.backend)))
        # Killed, and started again on the full disk.
        bed.agent.stop(signal.SIGKILL)
        bed.agent.start()
        bed.expect([ONE, TWO])


@ANY_BACKEND
def test_on_a_read_only_run_a_running_agent_goes_on_and_a_new_one_says_why_not(bed: Bed) -> None:
    put(bed, ONE)
    bed.agent.start()
    with mounted(bed.agent.runtime, "ro"):
        put(bed, TWO)
        bed.expect([ONE, TWO])
        bed.reload(masquerade="HostOnly")
        bed.expect([ONE, TWO], masquerade="HostOnly")
        assert bed.agent.stop() == 0
        done = bed.agent.call("run")
        assert (done.returncode, done.stderr) == (
            3,
            f"ipvs-node-agent: run: cannot open {bed.agent.runtime}/lock: Read-only file system\n",
        )
        bed.expect([ONE, TWO], masquerade="HostOnly")
    bed.api.delete("Service", "default", "two")
    bed.agent.start()
    bed.expect([ONE], masquerade="HostOnly")


def test_where_iptables_cannot_lock_on_a_read_only_run_it_goes_on_when_it_can(bed: Bed) -> None:
    """iptables-nft has no lock."""
    put(bed, ONE)
    own_run = 'mount --bind /run /run && exec "$@"'
    bed.agent.wrapper = ["unshare", "--mount", "sh", "-c", own_run, "sh"]
    bed.agent.start()

    def remount(how: str) -> None:
        enter = ["nsenter", f"--target={bed.agent.pid}", "--mount", "--root"]
        subprocess.run([*enter, "mount", "-o", f"remount,bind,{how}", "/run"], check=True)

    # One that is there already can be locked all the same.
    Path("/run/xtables.lock").unlink(missing_ok=True)
    remount("ro")
    put(bed, TWO)
    if bed.backend == "legacy":
        bed.agent.said("IPv4: cannot program the kernel, trying again: iptables-legacy-restore: ")
        bed.agent.said("Read-only file system")
        bed.expect([ONE])
        assert bed.agent.log.count("ERROR") == 1
        remount("rw")
    bed.expect([ONE, TWO])


# 2. Descriptors and memory


def limit(bed: Bed, which: int, soft: int) -> None:
    """Lowers or raises a limit of the running agent."""
    hard = resource.prlimit(bed.agent.pid, which)[1]
    resource.prlimit(bed.agent.pid, which, (soft if soft >= 0 else hard, hard))


@ANY_BACKEND
def test_without_file_descriptors_the_rules_stay_and_it_goes_on_when_there_are_some(
    bed: Bed,
) -> None:
    put(bed, ONE)
    bed.agent.start()
    used = {int(name) for name in os.listdir(f"/proc/{bed.agent.pid}/fd")}
    free = min(set(range(len(used) + 1)) - used)
    limit(bed, resource.RLIMIT_NOFILE, free)
    put(bed, TWO)
    bed.agent.said("IPv4: cannot program the kernel, trying again: iptables")
    bed.agent.said("Too many open files")
    bed.expect([ONE])
    # Another connection cannot be made either.
    bed.api.drop_watches()
    bed.agent.said("trying again; the rules stay as they are")
    assert bed.agent.running
    limit(bed, resource.RLIMIT_NOFILE, -1)
    bed.agent.said("IPv4: works again")
    bed.expect([ONE, TWO])
    bed.api.delete("Service", "default", "one")
    bed.expect([TWO])


@ANY_BACKEND
def test_without_memory_it_ends_or_goes_on_and_the_rules_stay(bed: Bed) -> None:
    put(bed, ONE)
    bed.agent.start()
    size = int(Path(f"/proc/{bed.agent.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    limit(bed, resource.RLIMIT_AS, size + (1 << 20))
    many = [(f"10.20.{n // 250}.{n % 250 + 1}", f"many-{n}", "10.231.7.7") for n in range(300)]
    put(bed, *many)
    last = many[-1][0]
    eventually(
        lambda: not bed.agent.running or any(last in line for line in bed.ours(IPV4)),
        "the end of one of them",
    )
    assert any(ONE[0] in line for line in bed.ours(IPV4))
    assert "Traceback" not in bed.agent.log
    # The service manager starts it again.
    if not bed.agent.running:
        bed.agent.wait()
        bed.agent.start()
    eventually(lambda: any(last in line for line in bed.ours(IPV4)))
    eventually(lambda: bed.agent.call("diff").returncode == 0)


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
    step.write_text("0")
    bed.agent.program = ["-c", STEPPED.format(path=str(step))]
    put(bed, ONE)
    bed.agent.start()
    for seconds in (3600, -3600):
        step.write_text(str(seconds))
        put(bed, TWO)
        bed.expect([ONE, TWO])
        bed.restore(IPV4, "*nat\n:IPVS_OUTPUT - [0:0]\nCOMMIT\n")
        bed.expect([ONE, TWO])
        bed.api.drop_watches()
        bed.api.delete("Service", "default", "two")
        bed.expect([ONE])
    lines = bed.agent.log.splitlines()
    hours = {line[11:13] for line in lines}
    assert 2 <= len(hours) <= 6, "the steps are seen in the log"
    assert not any("ERROR" in line for line in lines)
