"""An upgrade of the system brings another Python under the running agent."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.kernel.conftest import OTHER, WEB, Bed
from tests.support.agentprocess import altered
from tests.support.processes import children
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]


@pytest.mark.parametrize("backend", ["nft"])
def test_it_works_on_and_says_once_that_it_wants_a_restart(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, other = tmp_path / "python3", tmp_path / "python3.99"
    python.symlink_to(os.path.realpath(sys.executable))
    shutil.copy(python, other)
    monkeypatch.setattr(sys, "executable", str(python))
    bed.agent.program = altered({"commands.run._PROXY_PERIOD": 0.1})
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
    programs = {os.readlink(f"/proc/{each}/exe") for each in children(bed.agent.pid)}
    assert programs == {str(other)}
    assert bed.agent.log.count("was replaced by") == 1
