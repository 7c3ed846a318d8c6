"""The agent with a clock at its parts: `python3 -m tests.bench.stamped` is `ipvs-node-agent`.

Each part says on the standard error when it began and ended, as a line of JSON behind a mark. It
wraps functions of the program, which knows nothing of it.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from typing import Any, Callable

MARK = "STAMP "
# What ends a piece of work; only then there is time to say what was measured.
LAST = {"imports", "list", "save", "restore", "clean"}
_one_at_a_time = threading.Lock()
_measured: list[tuple[str, float, float]] = []


def _say(name: str, began: float, ended: float) -> None:
    with _one_at_a_time:
        _measured.append((name, began, ended))
        if name in LAST:
            # One write, as other threads log.
            os.write(2, "".join(f"{MARK}{json.dumps(each)}\n" for each in _measured).encode())
            _measured.clear()


def _timed(owner: Any, attribute: str, name: str) -> None:
    function: Callable[..., Any] = getattr(owner, attribute)

    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*arguments, **options)
        finally:
            _say(name, began, time.monotonic())

    setattr(owner, attribute, timed)


def main() -> int:
    """Runs the command line, and puts the clocks in where it would import what has them."""
    started = time.monotonic()
    from ipvs_node_agent import cli
    from ipvs_node_agent.kubeconfig.reader import Reader

    begin = Reader.begin

    def begun(self: Reader) -> None:
        begin(self)
        _put_in()
        _say("imports", started, time.monotonic())

    Reader.begin = begun  # type: ignore[method-assign]
    return cli.main()


def _put_in() -> None:
    from ipvs_node_agent.apiserver import follower
    from ipvs_node_agent.commands import mainloop
    from ipvs_node_agent.iptables import backends, command, programmer, table
    from ipvs_node_agent.processes import spares
    from ipvs_node_agent.sync import agent

    for owner, attribute, name in (
        (follower.Follower, "_list", "list"),
        (follower.Follower, "_initial", "list"),
        (mainloop, "_kernel", "backend"),
        (agent.Agent, "_plan", "plan"),
        (programmer, "difference", "difference"),
        (programmer, "restore_input", "text"),
        (programmer, "parse_save", "parse"),
        (table.KernelTable, "save", "save"),
        (table.KernelTable, "restore", "restore"),
        (command, "start", "launcher"),
        (spares, "_give", "given"),
        (backends.Kernel, "clean_others", "clean"),
    ):
        _timed(owner, attribute, name)
    taken = agent.Agent.take

    def take(self: agent.Agent, event: Any) -> None:
        if hasattr(event, "arrived"):
            _say("queue", event.arrived, time.monotonic())
        taken(self, event)

    agent.Agent.take = take  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main())
