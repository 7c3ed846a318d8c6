"""Whatever becomes of the kubeconfig, the agent goes on, repairs, and ends when it is told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.model.addresses import IPV4
from tests.kernel.conftest import OTHER, WEB, Bed
from tests.support.execplugin import Hanging, hanging_plugin
from tests.support.faults import ANY_BACKEND
from tests.support.processes import descendants
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12"), ANY_BACKEND]

# What an operator takes for at once, on a busy machine.
SOON = 8


@pytest.fixture
def hanging(bed: Bed, tmp_path: Path) -> Iterator[Hanging]:
    bed.put(WEB)
    with hanging_plugin(tmp_path, bed.api.url) as made:
        yield made


def go_to(bed: Bed, hanging: Hanging) -> None:
    """Has the agent read the kubeconfig whose plugin hangs."""
    bed.reload(kubeconfig=str(hanging.path))
    eventually(hanging.started)


def flush_and_expect_repair(bed: Bed) -> None:
    bed.restore(IPV4, "*nat\n-F PREROUTING\nCOMMIT\n")
    before = time.monotonic()
    bed.expect(WEB)
    assert time.monotonic() - before < SOON


def test_leaving_a_plugin_that_hangs_holds_up_nothing(bed: Bed, hanging: Hanging) -> None:
    good = bed.settings["kubeconfig"]
    bed.agent.start()
    bed.expect(WEB)
    go_to(bed, hanging)
    flush_and_expect_repair(bed)
    before = time.monotonic()
    bed.reload(kubeconfig=good)
    assert time.monotonic() - before < SOON
    flush_and_expect_repair(bed)
    hanging.is_over()
    bed.put(OTHER)
    bed.expect(WEB, OTHER)


@pytest.mark.parametrize("at_start", [True, False], ids=["at the start", "later"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_agent_whose_plugin_hangs_ends_when_told_to(
    number: int, at_start: bool, bed: Bed, hanging: Hanging
) -> None:
    if at_start:
        bed.configure(kubeconfig=str(hanging.path))
        bed.agent.start(wait=False)
        eventually(hanging.started)
    else:
        bed.agent.start()
        go_to(bed, hanging)
    assert set(hanging.started()) <= descendants(bed.agent.pid)
    before = time.monotonic()
    assert bed.agent.stop(number) == (-number if number == signal.SIGKILL else 0)
    assert time.monotonic() - before < SOON
    hanging.is_over()


def test_followers_share_one_reader(bed: Bed, hanging: Hanging) -> None:
    bed.configure(kubeconfig=str(hanging.path))
    bed.agent.start(wait=False)
    eventually(hanging.started)
    # The credentials' files are looked at each second, and by as many threads as there are.
    end = time.monotonic() + 3
    eventually(lambda: time.monotonic() > end)
    assert len(hanging.started()) == 2


def spoilt(kubeconfig: str) -> dict[str, str]:
    """Kubeconfigs that nothing can be made of, by what is wrong with them."""
    return {
        "its server has a host with an empty label": kubeconfig.replace("127.0.0.1", "a..b"),
        "holds a user or a password": kubeconfig.replace("://", "://me:s3cret@"),
        "is not YAML": kubeconfig + "more: !!bool zz\n",
        "is not a regular file": "",
    }


def put(path: Path, content: str) -> None:
    """Puts a file, or where there is no content a FIFO, in the place of another one."""
    new = path.with_suffix(".new")
    if content:
        new.write_text(content)
        new.chmod(0o600)
    else:
        os.mkfifo(new, 0o600)
    new.replace(path)


def test_a_kubeconfig_that_is_none_is_said_and_waited_for(bed: Bed, tmp_path: Path) -> None:
    """At the start, when it changes, and when another one is named."""
    bed.put(WEB)
    path, second = Path(bed.settings["kubeconfig"]), tmp_path / "second.conf"
    good = path.read_text()
    put(path, "")
    bed.agent.start(wait=False)
    bed.agent.said(f"kubeconfig {path}: is not a regular file")
    put(path, good)
    bed.agent.said("ready: ")
    for why, content in spoilt(good).items():
        put(path, content)
        bed.agent.said(f"using the old ones: kubeconfig {path}: ")
        bed.agent.said(why)
        put(path, good)
        put(second, content)
        bed.reload(kubeconfig=str(second))
        flush_and_expect_repair(bed)
        bed.reload(kubeconfig=str(path))
    assert bed.agent.running
    assert "s3cret" not in bed.agent.log
    assert bed.agent.stop() == 0
