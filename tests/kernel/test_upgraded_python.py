"""An upgrade of the system brings another Python under the running agent."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.kernel.conftest import OTHER, WEB, Bed
from tests.support.agentprocess import altered
from tests.support.processes import children
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]


def programs(agent: int) -> set[str]:
    """What the agent's children are at work with."""
    found = set()
    for child in children(agent):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.add(os.readlink(f"/proc/{child}/exe"))
    return found


@pytest.mark.parametrize("backend", ["nft"])
def test_it_works_on_and_says_once_that_it_wants_a_restart(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, other = tmp_path / "python3", tmp_path / "python3.99"
    python.symlink_to(os.path.realpath(sys.executable))
    shutil.copy(python, other)
    monkeypatch.setattr(sys, "executable", str(python))
    bed.agent.program = altered({"commands.mainloop._PROXY_PERIOD": 0.1})
    bed.put(WEB)
    bed.agent.start()
    python.unlink()
    python.symlink_to(other)
    eventually(lambda: "was replaced by" in bed.agent.log)
    # Whatever starts commands from now on is of the other one.
    for child in children(bed.agent.pid):
        os.kill(child, signal.SIGKILL)
    bed.put(OTHER)
    bed.expect(WEB, OTHER)
    # The write may have been given to a command that ran already, and until a child begins its own
    # program it has the agent's.
    eventually(lambda: programs(bed.agent.pid) == {str(other)}, "commands of the other Python")
    assert bed.agent.log.count("was replaced by") == 1
