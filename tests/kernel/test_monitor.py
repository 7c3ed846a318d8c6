"""Which changes of real nft tables are heard, and whose."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ipvs_node_agent.config.settings import IptablesOptions
from ipvs_node_agent.iptables.anytable import Since
from ipvs_node_agent.iptables.backends import Kernel
from ipvs_node_agent.iptables.command import TableError, launch
from ipvs_node_agent.iptables.programmer import Programmer
from ipvs_node_agent.iptables.table import LEGACY, NFT, KernelTable
from ipvs_node_agent.model.addresses import IPV4, IPV6
from ipvs_node_agent.nat.amended import amended
from ipvs_node_agent.nat.chains import owner
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.nat.saveformat import parse_save
from ipvs_node_agent.nft import monitor
from tests.support.netns import Namespace
from tests.support.processes import descendants
from tests.support.tables import add_mark_masq, restore, saved
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("newest", "oldest")]

LEAF = "IPVS_OUTPUT-0a000000/8"
JUMP = f"IPVS_OUTPUT -d 10.0.0.0/8 -j {LEAF}"
owns = owner(frozenset({"IPVS_OUTPUT"}))


def nat(*lines: str) -> str:
    """Input for iptables-restore."""
    return "\n".join(["*nat", *lines, "COMMIT", ""])


OURS = nat(
    ":IPVS_OUTPUT - [0:0]",
    f":{LEAF} - [0:0]",
    f"-A {JUMP}",
    # An empty chain would be flushed without a word.
    f"-A {LEAF} -j RETURN",
    "-I OUTPUT 1 -j IPVS_OUTPUT",
)
MARKS = ":KUBE-MARK-MASQ - [0:0]", "-A KUBE-MARK-MASQ -j RETURN"


def rules(chain: str, count: int) -> list[str]:
    return [f"-A {chain} -s 10.{n // 250}.{n % 250}.1 -j RETURN" for n in range(count)]


@contextmanager
def opened(namespace: Namespace, backend: str = NFT, mark: str = "") -> Iterator[KernelTable]:
    with namespace.enter():
        yield KernelTable(launch(), IPV4, backend, IptablesOptions(), owns, mark)


@pytest.fixture
def table(namespace: Namespace) -> Iterator[KernelTable]:
    """A table that was just read, with chains of ours and of kube-proxy in it."""
    add_mark_masq(namespace, IPV4, NFT)
    namespace.run("iptables-nft", "-t", "nat", "-N", "KUBE-EMPTY")
    with opened(namespace) as made:
        made.restore(OURS)
        made.save()
        yield made


# Lines for iptables-restore, and commands.
HEARD = [
    [f"-F {LEAF}"],
    [f"-D {JUMP}"],
    ["-A IPVS_OUTPUT -j RETURN"],
    ["-I IPVS_OUTPUT 1 -j RETURN"],
    [":IPVS_OUTPUT-0b000000/8 - [0:0]"],
    ["-D OUTPUT -j IPVS_OUTPUT"],
    ["-I OUTPUT 1 -j KUBE-MARK-MASQ"],
    ["-A PREROUTING -j KUBE-MARK-MASQ"],
    ["nft flush ruleset"],
    ["iptables-nft -t nat -F"],
    # Of a chain that is renamed the kernel tells its new name alone.
    ["iptables-nft -t nat -E IPVS_OUTPUT GONE"],
    [f"iptables-nft -t nat -E {LEAF} GONE"],
    ["iptables-nft -t nat -E KUBE-MARK-MASQ GONE"],
    # Under the name of a chain that was there at the last look.
    ["iptables-nft -t nat -X KUBE-EMPTY", "iptables-nft -t nat -E IPVS_OUTPUT KUBE-EMPTY"],
]


@pytest.mark.parametrize("changes", HEARD, ids=" and ".join)
def test_what_changes_ours_or_a_built_in_chain_or_a_name_is_heard(
    changes: list[str], table: KernelTable, namespace: Namespace
) -> None:
    for change in changes:
        if change[0] in "-:":
            restore(namespace, IPV4, NFT, nat(change))
        else:
            namespace.run(*change.split())
    assert table.changed() is Since.CHANGED
    # It stays so until the table is read.
    assert table.changed() is Since.CHANGED
    table.save()
    assert table.changed() is Since.UNCHANGED


def test_what_others_do_in_chains_of_their_own_is_not_heard(
    table: KernelTable, namespace: Namespace
) -> None:
    """As kube-proxy does it every thirty seconds."""
    assert table.changed() is Since.UNCHANGED
    for _ in range(3):
        restore(namespace, IPV4, NFT, nat(*MARKS))
        namespace.run("iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
    namespace.run("iptables-nft", "-t", "nat", "-X", "KUBE-EMPTY")
    add_mark_masq(namespace, IPV6, NFT)
    assert table.changed() is Since.UNCHANGED
    assert table.changed(closely=True) is Since.UNCHANGED


def deafen(table: KernelTable) -> None:
    """Takes away what the kernel told, as if it had not."""
    assert table.told_by is not None
    with socket.socket(fileno=os.dup(table.told_by)) as stolen, suppress(BlockingIOError):
        while stolen.recv(1 << 16):
            pass


def test_that_something_was_not_told_shows_in_the_number_of_changes(
    table: KernelTable, namespace: Namespace
) -> None:
    drop = nat("-D OUTPUT -j IPVS_OUTPUT")
    restore(namespace, IPV4, NFT, drop)
    deafen(table)
    assert table.changed() is Since.UNCHANGED
    assert table.changed(closely=True) is Since.CHANGED
    # What others did cannot be told, so that the whole table is read, once.
    assert table.reread() is None
    assert "-A OUTPUT" not in table.save()
    assert table.changed(closely=True) is Since.UNCHANGED


@pytest.mark.parametrize("ours", [False, True], ids=["others' change", "our own change"])
def test_that_something_was_not_told_shows_in_the_next_change(
    ours: bool, table: KernelTable, namespace: Namespace
) -> None:
    restore(namespace, IPV4, NFT, nat(f"-F {LEAF}"))
    deafen(table)
    if ours:
        table.restore(nat("-A IPVS_OUTPUT -j RETURN"))
    else:
        restore(namespace, IPV6, NFT, nat(*MARKS))
    assert table.changed() is Since.CHANGED
    table.save()
    table.restore(nat("-A IPVS_OUTPUT -j RETURN"))
    assert table.changed(closely=True) is Since.UNCHANGED


def test_of_many_changes_by_many_none_is_missed(table: KernelTable, namespace: Namespace) -> None:
    others = (
        "iptables-nft -w -t nat -A INPUT -j RETURN; ip6tables-nft -t filter -F; nft add table x"
    )
    busy = namespace.popen(["sh", "-c", f"for n in $(seq 15); do {others}; done"])
    for _ in range(10):
        table.restore(nat("-A IPVS_OUTPUT -j RETURN", "-D IPVS_OUTPUT -j RETURN"))
        # Only where it is certain which chains are others now, INPUT among them.
        assert table.reread() is not None
    assert busy.wait(60) == 0
    assert table.changed(closely=True) is Since.CHANGED
    assert table.reread() is not None


def test_a_kernel_that_does_not_say_its_number_is_not_believed(
    table: KernelTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert table.changed(closely=True) is Since.UNCHANGED
    monkeypatch.setattr(monitor, "_QUESTION", b"")
    assert table.changed(closely=True) is Since.CHANGED
    table.save()
    assert table.changed() is Since.UNCHANGED
    assert table.changed(closely=True) is Since.CHANGED


@pytest.mark.parametrize(
    ("changes", "heard"),
    [
        (["-F KUBE-MARK-MASQ"], Since.CHANGED),
        (["-A KUBE-MARK-MASQ -j RETURN"], Since.UNCHANGED),
        (["-F KUBE-MARK-MASQ", "-X KUBE-MARK-MASQ"], Since.CHANGED),
        (MARKS, Since.UNCHANGED),
    ],
    ids=["emptied", "one more", "removed", "written anew, as with each sync of kube-proxy"],
)
def test_of_the_chain_that_marks_it_is_heard_whether_it_has_rules(
    changes: list[str], heard: Since, namespace: Namespace
) -> None:
    restore(namespace, IPV4, NFT, nat(*MARKS))
    with opened(namespace, mark="KUBE-MARK-MASQ") as table:
        table.save()
        assert table.changed() is Since.UNCHANGED
        restore(namespace, IPV4, NFT, nat(*changes))
        assert table.changed() is heard
        # It fills where it had none.
        restore(namespace, IPV4, NFT, nat(":KUBE-MARK-MASQ - [0:0]"))
        table.save()
        table.changed()
        restore(namespace, IPV4, NFT, nat(*MARKS))
        assert table.changed() is Since.CHANGED


@pytest.mark.parametrize(
    "change",
    [
        f"-F {LEAF}",
        f"-F {LEAF}\n-D {JUMP}\n-X {LEAF}",
        f"-D {JUMP}",
        '-I IPVS_OUTPUT 1 -p tcp -m tcp --dport 80 -m comment --comment "x \\" y" -j RETURN',
        "-D OUTPUT -j IPVS_OUTPUT",
        "-D OUTPUT -j IPVS_OUTPUT\n-A OUTPUT -j IPVS_OUTPUT",
        "-I OUTPUT 1 -j KUBE-MARK-MASQ",
    ],
)
def test_what_few_chains_have_become_is_read_without_the_rest(
    change: str, table: KernelTable, namespace: Namespace
) -> None:
    restore(namespace, IPV4, NFT, nat("-A OUTPUT -j KUBE-MARK-MASQ"))
    before = parse_save(table.save(), owns)
    restore(namespace, IPV4, NFT, nat(change))
    assert table.changed() is Since.CHANGED
    there = table.reread()
    assert there is not None
    now = amended(before, there, owns)
    table.looked()
    # To read is no change that anybody is told of.
    assert table.changed() is Since.UNCHANGED
    assert now == parse_save(table.save(), owns)
    assert now != before


# Before 1.8.8 iptables-nft shows what it can of such a chain.
@pytest.mark.once
def test_what_only_nft_can_show_is_not_read_without_the_rest(
    table: KernelTable, namespace: Namespace
) -> None:
    namespace.run(
        "nft", "add", "rule", "ip", "nat", "OUTPUT", "meta", "mark", "set", "mark", "|", "1"
    )
    assert table.changed() is Since.CHANGED
    with pytest.raises(TableError):
        table.reread()


def test_nobody_tells_about_a_legacy_table(namespace: Namespace) -> None:
    with opened(namespace, LEGACY) as table:
        assert table.changed() is Since.UNKNOWN
        table.restore(OURS)
        table.save()
        assert table.changed() is Since.UNKNOWN


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


def test_of_our_own_writes_and_others_just_before_only_these_are_heard(
    table: KernelTable, namespace: Namespace
) -> None:
    new = ":IPVS_OUTPUT-0b000000/8 - [0:0]"
    own = nat(":IPVS_OUTPUT - [0:0]", new, "-A IPVS_OUTPUT -j RETURN")
    table.restore(own)
    assert table.changed() is Since.UNCHANGED
    restore(namespace, IPV4, NFT, nat("-D OUTPUT -j IPVS_OUTPUT"))
    table.restore(own)
    assert table.changed() is Since.CHANGED


def test_more_than_can_be_told_counts_as_a_change(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "_BUFFER", 1 << 16)
    add_mark_masq(namespace, IPV4, NFT)
    with opened(namespace) as table:
        table.save()
        restore(namespace, IPV4, NFT, nat(*rules("KUBE-MARK-MASQ", 20000)))
        assert table.changed() is Since.CHANGED


def test_a_large_write_of_our_own_is_looked_at_once(table: KernelTable) -> None:
    table.restore(nat(*rules("IPVS_OUTPUT", 30000)))
    assert table.changed() is Since.CHANGED
    table.save()
    assert table.changed() is Since.UNCHANGED


THEIRS = nat("-D OUTPUT -j IPVS_OUTPUT")
ELSEWHERE = nat(*MARKS)


@pytest.mark.parametrize(
    ("before", "meanwhile", "said", "heard"),
    [
        ([], [ELSEWHERE], 1, Since.UNCHANGED),
        ([], [], 0, Since.UNCHANGED),
        ([ELSEWHERE], [ELSEWHERE], 1, Since.UNCHANGED),
        ([THEIRS], [ELSEWHERE], 1, Since.CHANGED),
        ([], [THEIRS, ELSEWHERE], 1, Since.CHANGED),
        # Ours failed, and another one came.
        ([], [THEIRS], 0, Since.CHANGED),
        ([], [], 1, Since.CHANGED),
    ],
)
def test_who_pauses_for_a_write_misses_no_other_one(
    before: list[str],
    meanwhile: list[str],
    said: int,
    heard: Since,
    table: KernelTable,
    namespace: Namespace,
) -> None:
    for text in before:
        restore(namespace, IPV4, NFT, text)
    table.pause()
    for text in meanwhile:
        restore(namespace, IPV4 if text is THEIRS else IPV6, NFT, text)
    table.resume(said)
    assert table.changed() is heard
    assert table.changed(closely=True) is heard
    table.save()
    assert table.changed(closely=True) is Since.UNCHANGED
    restore(namespace, IPV4, NFT, nat("-I OUTPUT 1 -j RETURN"))
    assert table.changed() is Since.CHANGED


@pytest.mark.parametrize(
    "theirs", [None, 0, 1, 2], ids=["nobody", "in the first part", "in the second", "in the last"]
)
def test_who_pauses_for_each_part_of_a_write_misses_no_other_one(
    theirs: int | None, table: KernelTable, namespace: Namespace
) -> None:
    """What was told between two of them is heard behind both."""
    for part in range(3):
        table.pause()
        restore(namespace, IPV6, NFT, ELSEWHERE)
        if theirs == part:
            restore(namespace, IPV4, NFT, THEIRS)
        table.resume(1)
    assert table.changed() is (Since.UNCHANGED if theirs is None else Since.CHANGED)
    table.save()
    assert table.changed(closely=True) is Since.UNCHANGED


def test_of_a_large_write_no_table_of_ours_is_told(namespace: Namespace) -> None:
    with namespace.enter():
        kernel = Kernel(launch(), IptablesOptions(NFT), frozenset({"IPVS_OUTPUT"}), "MARK")
        kernel.choose()
        programmers, empty = kernel.programmers(), Ruleset({}, {})
        for programmer in programmers.values():
            programmer.apply(empty)
        there = programmers[IPV6].told_by
        assert there is not None
        large = tuple(each.partition(" -s ")[2] for each in rules("IPVS_OUTPUT", 30000))
        programmers[IPV4].apply(Ruleset({"IPVS_OUTPUT": tuple(f"-s {each}" for each in large)}))
        with socket.socket(fileno=os.dup(there)) as hearing:
            # The number of the last transaction, which it asked for, and nothing else.
            assert len(hearing.recv(1 << 16, socket.MSG_PEEK)) < 200
        assert not programmers[IPV6].heard()
        restore(namespace, IPV6, NFT, nat("-I OUTPUT 1 -j RETURN"))
        assert programmers[IPV6].heard()
        kernel.close()


# That the old rules have to be freed keeps the process of a write busy for a while.
BUSY = nat(f":{LEAF} - [0:0]", *rules(LEAF, 8000))


def test_a_write_is_done_when_the_kernel_says_so(table: KernelTable, namespace: Namespace) -> None:
    before = descendants()

    def still_running_when_done() -> bool:
        table.restore(BUSY)
        return bool(descendants() - before)

    eventually(still_running_when_done, timeout=60)
    assert len(saved(namespace, IPV4, NFT)) > 8000
    assert table.changed() is Since.UNCHANGED
    # Its end is told before it is reaped.
    eventually(lambda: descendants() <= before, "no process more")


def test_a_write_whose_process_then_fails_is_looked_at(table: KernelTable) -> None:
    before = descendants()

    def killed_at_its_end() -> bool:
        table.restore(BUSY)
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
    restore(namespace, IPV4, NFT, nat("-D OUTPUT -j IPVS_OUTPUT"))
    assert programmer.check(wanted).written == wanted.chains
    (failure,) = failures
    assert "IPVS_OUTPUT" in failure
    assert "-A IPVS_OUTPUT -j RETURN" in saved(namespace, IPV4, NFT)
