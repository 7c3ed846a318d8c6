"""The real agent as a process in a network namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.netns import Namespace
from tests.support.places import REPOSITORY
from tests.support.waiting import eventually


def altered(constants: Mapping[str, object]) -> list[str]:
    """What Python runs as the program where constants of its modules have other values.

    They are named by their paths in it; one that is not there ends the program at once.
    """
    lines = ["import importlib, sys", "from ipvs_node_agent import cli"]
    for path, value in constants.items():
        module, _, name = path.rpartition(".")
        lines += [
            f"module = importlib.import_module('ipvs_node_agent.{module}')",
            f"module.{name}  # or an AttributeError",
            f"module.{name} = {value!r}",
        ]
    return ["-c", "\n".join([*lines, "sys.exit(cli.main())"])]


class AgentProcess:
    """`ipvs-node-agent` with a configuration, a runtime directory and a log of its own."""

    def __init__(self, namespace: Namespace, directory: Path, settings: Mapping[str, Any]) -> None:
        self.namespace = namespace
        self.config = directory / "config.yaml"
        self.log_path = directory / "agent.log"
        self.runtime = directory / "ipvs-node-agent"
        # What starts `run`, and what Python runs as the program.
        self.wrapper: list[str] = []
        self.program = ["-m", "ipvs_node_agent"]
        # Further arguments of `run`.
        self.options: list[str] = []
        # Where Python finds modules first.
        self.path = [REPOSITORY]
        # What else its environment has.
        self.variables: dict[str, str] = {}
        self.configure(settings)
        self._process: subprocess.Popen[Any] | None = None

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Writes the configuration; a running agent reads it when told to."""
        self.config.write_text(yaml.safe_dump(dict(settings)))
        self.config.chmod(0o600)

    def command(self, *arguments: str) -> list[str]:
        """The command line of the agent with `arguments`."""
        return [sys.executable, *self.program, "--config", str(self.config), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the agent's commands."""
        path = os.pathsep.join(map(str, self.path))
        own = {"RUNTIME_DIRECTORY": str(self.runtime), "PYTHONPATH": path}
        return {**os.environ, **own, **self.variables}

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs one of the agent's commands to its end, inside the namespace."""
        with self.namespace.enter():
            return subprocess.run(
                self.command(*arguments),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env=self.environment,
            )

    def start(self, wait: bool = True) -> None:
        """Starts `run`; with `wait`, returns when it holds the kernel in sync."""
        before = self.log.count("ready: ")
        with self.log_path.open("ab") as log:
            command = [*self.wrapper, *self.command("run", *self.options)]
            self._process = self.namespace.popen(
                command, stdout=log, stderr=log, env=self.environment
            )
        if wait:
            eventually(lambda: self.log.count("ready: ") > before, lambda: f"ready\n{self.log}", 60)

    def send(self, number: int) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it, and gives its exit status."""
        assert self._process is not None
        self.send(number)
        return self.wait()

    def wait(self, timeout: float = 15) -> int:
        """Waits until it ends by itself, and gives its exit status."""
        assert self._process is not None
        status = self._process.wait(timeout)
        self._process = None
        return status

    def kill_if_running(self) -> None:
        """Leaves nothing behind."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=15)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All it has said so far."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def said(self, text: str) -> None:
        """Waits until it has said `text`."""
        # Nobody tells it of some things, and it looks for these every ten seconds.
        eventually(lambda: text in self.log, lambda: f"the agent saying {text!r}\n{self.log}", 30)


@contextmanager
def agent_process(
    namespace: Namespace, directory: Path, settings: Mapping[str, Any]
) -> Iterator[AgentProcess]:
    """An agent, not yet started, that does not outlive the test."""
    directory.mkdir(exist_ok=True)
    agent = AgentProcess(namespace, directory, settings)
    try:
        yield agent
    finally:
        agent.kill_if_running()
