"""Which changes of real nft tables are heard, and whose."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables import nftmonitor
from ipvs_node_agent.iptables.command import TableError, launch
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.iptables.table import LEGACY, NFT, KernelTable, Since
from ipvs_node_agent.model.addresses import IPV4, IPV6
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Ruleset
from tests.support.netns import Namespace
from tests.support.processes import descendants
from tests.support.tables import add_mark_masq, restore, saved
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest", "oldest")]

OURS = """*nat
:IPVS_OUTPUT - [0:0]
:IPVS_OUTPUT-0a000000/8 - [0:0]
-A IPVS_OUTPUT -d 10.0.0.0/8 -j IPVS_OUTPUT-0a000000/8
-I OUTPUT 1 -j IPVS_OUTPUT
COMMIT
"""
owns = owner(frozenset({"IPVS_OUTPUT"}))


@pytest.fixture
def table(namespace: Namespace) -> Iterator[KernelTable]:
    """A table that was just read, with chains of ours and of kube-proxy in it."""
    add_mark_masq(namespace, IPV4, NFT)
    namespace.run("iptables-nft", "-t", "nat", "-N", "KUBE-EMPTY")
    with namespace.enter():
        made = KernelTable(launch(), IPV4, NFT, IptablesOptions(), owns)
        made.restore(OURS)
        made.save()
        yield made


def test_nothing_is_heard_where_nothing_happens(table: KernelTable) -> None:
    assert table.changed() is Since.UNCHANGED


@pytest.mark.parametrize(
    "change",
    [
        "-F IPVS_OUTPUT-0a000000/8",
        "-D IPVS_OUTPUT -d 10.0.0.0/8 -j IPVS_OUTPUT-0a000000/8",
        "-A IPVS_OUTPUT -j RETURN",
        "-I IPVS_OUTPUT 1 -j RETURN",
        ":IPVS_OUTPUT-0b000000/8 - [0:0]",
        "-D OUTPUT -j IPVS_OUTPUT",
        "-I OUTPUT 1 -j KUBE-MARK-MASQ",
        "-A PREROUTING -j KUBE-MARK-MASQ",
    ],
)
def test_a_change_of_ours_or_of_a_built_in_chain_is_heard(
    change: str, table: KernelTable, namespace: Namespace
) -> None:
    # An empty chain is flushed without a word.
    restore(namespace, IPV4, NFT, "*nat\n-A IPVS_OUTPUT-0a000000/8 -j RETURN\nCOMMIT\n")
    table.save()
    restore(namespace, IPV4, NFT, f"*nat\n{change}\nCOMMIT\n")
    assert table.changed() is Since.CHANGED
    # It stays so until the table is read.
    assert table.changed() is Since.CHANGED
    table.save()
    assert table.changed() is Since.UNCHANGED


@pytest.mark.parametrize(
    "command", [("nft", "flush", "ruleset"), ("iptables-nft", "-t", "nat", "-F")]
)
def test_a_flush_of_everything_is_heard(
    command: tuple[str, ...], table: KernelTable, namespace: Namespace
) -> None:
    namespace.run(*command)
    assert table.changed() is Since.CHANGED


def test_what_others_do_in_chains_of_their_own_is_not_heard(
    table: KernelTable, namespace: Namespace
) -> None:
    """As kube-proxy does it every thirty seconds."""
    for _ in range(3):
        restore(
            namespace,
            IPV4,
            NFT,
            "*nat\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j RETURN\nCOMMIT\n",
        )
        namespace.run("iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
    namespace.run("iptables-nft", "-t", "nat", "-X", "KUBE-EMPTY")
    add_mark_masq(namespace, IPV6, NFT)
    assert table.changed() is Since.UNCHANGED


@pytest.mark.parametrize(
    "changes",
    [
        ["-E IPVS_OUTPUT GONE"],
        ["-E IPVS_OUTPUT-0a000000/8 GONE"],
        ["-E KUBE-MARK-MASQ GONE"],
        # Under the name of a chain that was there at the last look.
        ["-X KUBE-EMPTY", "-E IPVS_OUTPUT KUBE-EMPTY"],
    ],
)
def test_a_chain_that_is_renamed_is_heard(
    changes: list[str], table: KernelTable, namespace: Namespace
) -> None:
    """The kernel tells its new name alone."""
    for change in changes:
        namespace.run("iptables-nft", "-t", "nat", *change.split())
    assert table.changed() is Since.CHANGED
    table.save()
    assert table.changed() is Since.UNCHANGED


def test_a_closed_table_listens_no_more(table: KernelTable) -> None:
    def listening() -> int:
        return sum(
            os.readlink(link).startswith("socket:")
            for link in Path("/proc/self/fd").iterdir()
            if link.is_symlink()
        )

    before = listening()
    table.close()
    assert listening() == before - 1


@pytest.mark.parametrize(
    ("changes", "heard"),
    [
        (["-F KUBE-MARK-MASQ"], Since.CHANGED),
        (["-A KUBE-MARK-MASQ -j RETURN"], Since.CHANGED),
        (["-F KUBE-MARK-MASQ", "-X KUBE-MARK-MASQ"], Since.CHANGED),
        ([":KUBE-MARK-MASQ - [0:0]", "-A KUBE-MARK-MASQ -j RETURN"], Since.UNCHANGED),
    ],
    ids=["emptied", "filled", "removed", "written anew, as with each sync of kube-proxy"],
)
def test_of_the_chain_that_marks_it_is_heard_whether_it_has_rules(
    changes: list[str], heard: Since, namespace: Namespace
) -> None:
    restore(
        namespace, IPV4, NFT, "*nat\n:KUBE-MARK-MASQ - [0:0]\n-A KUBE-MARK-MASQ -j RETURN\nCOMMIT\n"
    )
    with namespace.enter():
        table = KernelTable(launch(), IPV4, NFT, IptablesOptions(), owns, "KUBE-MARK-MASQ")
        table.save()
        restore(namespace, IPV4, NFT, "\n".join(["*nat", *changes, "COMMIT", ""]))
        assert table.changed() is heard


def test_what_the_table_itself_wrote_is_not_heard(table: KernelTable) -> None:
    table.restore(":".join(["*nat\n", "IPVS_OUTPUT - [0:0]\n-A IPVS_OUTPUT -j RETURN\nCOMMIT\n"]))
    assert table.changed() is Since.UNCHANGED


def test_a_change_just_before_our_own_is_heard(table: KernelTable, namespace: Namespace) -> None:
    restore(namespace, IPV4, NFT, "*nat\n-D OUTPUT -j IPVS_OUTPUT\nCOMMIT\n")
    table.restore("*nat\n:IPVS_OUTPUT - [0:0]\n-A IPVS_OUTPUT -j RETURN\nCOMMIT\n")
    assert table.changed() is Since.CHANGED


def test_more_than_can_be_told_counts_as_a_change(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nftmonitor, "_BUFFER", 1 << 16)
    add_mark_masq(namespace, IPV4, NFT)
    with namespace.enter():
        table = KernelTable(launch(), IPV4, NFT, IptablesOptions(), owns)
        table.save()
    rules = "".join(
        f"-A KUBE-MARK-MASQ -s 10.{n // 250}.{n % 250}.1 -j RETURN\n" for n in range(20000)
    )
    restore(namespace, IPV4, NFT, f"*nat\n{rules}COMMIT\n")
    assert table.changed() is Since.CHANGED


def test_a_large_write_of_our_own_is_looked_at_once(table: KernelTable) -> None:
    rules = "".join(
        f"-A IPVS_OUTPUT -s 10.{n // 250}.{n % 250}.1 -j RETURN\n" for n in range(30000)
    )
    table.restore(f"*nat\n{rules}COMMIT\n")
    assert table.changed() is Since.CHANGED
    table.save()
    assert table.changed() is Since.UNCHANGED


def test_nobody_tells_about_a_legacy_table(namespace: Namespace) -> None:
    with namespace.enter():
        table = KernelTable(launch(), IPV4, LEGACY, IptablesOptions(), owns)
        assert table.changed() is Since.UNKNOWN
        table.restore(OURS)
        table.save()
        assert table.changed() is Since.UNKNOWN


def busy_rules(count: int) -> str:
    """Input that fills our second chain, so that freeing its rules later takes a while."""
    rules = "".join(
        f"-A IPVS_OUTPUT-0a000000/8 -s 10.{n // 250}.{n % 250}.1 -j RETURN\n" for n in range(count)
    )
    return f"*nat\n:IPVS_OUTPUT-0a000000/8 - [0:0]\n{rules}COMMIT\n"


def test_a_write_is_done_when_the_kernel_says_so(table: KernelTable, namespace: Namespace) -> None:
    """Its process goes on for a while, since it waits for the old rules to be freed."""
    before = descendants()

    def still_running_when_done() -> bool:
        table.restore(busy_rules(8000))
        return bool(descendants() - before)

    eventually(still_running_when_done, timeout=60)
    assert len(saved(namespace, IPV4, NFT)) > 8000
    assert table.changed() is Since.UNCHANGED
    assert descendants() <= before


def test_a_write_whose_process_then_fails_is_looked_at(table: KernelTable) -> None:
    before = descendants()

    def killed_at_its_end() -> bool:
        table.restore(busy_rules(8000))
        for number in descendants() - before:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return table.changed() is Since.CHANGED

    eventually(killed_at_its_end, timeout=60)


def test_a_write_that_a_firewalls_start_overtakes_is_made_anew(
    table: KernelTable, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Ruleset({"IPVS_OUTPUT": ("-j RETURN",)}, {"OUTPUT": "IPVS_OUTPUT"})
    programmer = Programmer(table, owns)
    programmer.apply(wanted)
    failures: list[str] = []
    write = table.restore

    def overtaken(text: str) -> None:
        if not failures:
            namespace.run("nft", "flush", "ruleset")
        try:
            write(text)
        except TableError as error:
            failures.append(str(error))
            raise

    monkeypatch.setattr(table, "restore", overtaken)
    # What is to be written names a chain that is there at the look.
    restore(namespace, IPV4, NFT, "*nat\n-D OUTPUT -j IPVS_OUTPUT\nCOMMIT\n")
    assert programmer.check(wanted).written == wanted.chains
    (failure,) = failures
    assert "IPVS_OUTPUT" in failure
    assert "-A IPVS_OUTPUT -j RETURN" in saved(namespace, IPV4, NFT)
