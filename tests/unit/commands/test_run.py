"""What `run` does before there is a main loop: the kubeconfig is being read, and little else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipvs_node_agent.commands import mainloop, run
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.errors import RefusedError
from ipvs_node_agent.host.systemd import ServiceManager
from ipvs_node_agent.kubeconfig.reader import Reader

# What takes most of the time that all imports take.
HEAVY = ["http.client", "prometheus_client", "ssl", "urllib3"]


def test_it_is_imported_without_what_a_main_loop_is_made_of() -> None:
    code = (
        "import sys; import ipvs_node_agent.commands.run;"
        " print(*sys.modules.keys() & set(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *HEAVY]
    output = subprocess.run(command, env=environment, check=True, capture_output=True).stdout
    assert output.split() == []


def test_the_main_loop_has_a_reader_that_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "ipvs-node-agent"))
    path, manager = tmp_path / "config.yaml", ServiceManager({})
    path.write_text(f"kubeconfig: {tmp_path}/kubelet.conf")
    path.chmod(0o600)
    begun: list[Reader] = []
    ran: list[Config] = []
    monkeypatch.setattr(Reader, "begin", lambda reader: begun.append(reader))

    class Loop:
        def __init__(self, *given: Any) -> None:
            config = given[1]
            assert given == (path, config, manager, begun[0])
            assert str(begun[0].path) == config.kubeconfig == f"{tmp_path}/kubelet.conf"
            ran.append(config)

        def run(self) -> None:
            # Another one on this node reads nothing.
            with pytest.raises(RefusedError, match="already running"):
                run.run(path, manager)

    monkeypatch.setattr(mainloop, "MainLoop", Loop)
    run.run(path, manager)
    assert (len(ran), len(begun)) == (1, 1)
