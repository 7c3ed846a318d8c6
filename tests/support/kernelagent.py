"""The agent on real tables in this process: its clock is the test's, its commands are named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Callable

import pytest

from ipvs_node_agent.apiserver.reading import read_node, read_service
from ipvs_node_agent.config.settings import Config, IptablesOptions
from ipvs_node_agent.host.rundir import own_names
from ipvs_node_agent.iptables import command
from ipvs_node_agent.iptables.backends import Kernel
from ipvs_node_agent.iptables.command import launch
from ipvs_node_agent.model.addresses import FAMILIES
from ipvs_node_agent.model.events import NODES, SERVICES, Listed
from ipvs_node_agent.sync.agent import Agent
from tests.support.agentnode import EXTERNAL_4, web
from tests.support.cluster import POD_CIDRS, node
from tests.support.netns import Namespace
from tests.support.tables import add_mark_masq


def commands_started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the commands that are started from now on."""
    names: list[str] = []
    real = command.start

    def start(launcher: object, name: str, *rest: object, **options: object) -> object:
        names.append(name)
        return real(launcher, name, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "start", start)
    return names


@contextmanager
def kernel_agent(
    namespace: Namespace,
    backend: str,
    clock: Callable[[], float] = time.monotonic,
    meanwhile: Callable[[], None] = lambda: None,
) -> Iterator[Agent]:
    """An agent that looked ahead, was told of a Service and wrote its rules, in the namespace.

    `meanwhile` is called between the look and the news.
    """
    config = Config(iptables=IptablesOptions(backend=backend))
    for family in FAMILIES:
        add_mark_masq(namespace, family, backend)
    with namespace.enter(), closing(launch()) as launcher:
        names = own_names(config.chains)
        kernel = Kernel(launcher, config.iptables, names, config.chains.mark_masquerade)
        with closing(kernel):
            kernel.choose()
            agent = Agent(config, kernel.programmers(), clock, filters=kernel.filters())
            kernel.look_ahead()
            meanwhile()
            agent.take(Listed(NODES, (read_node(node(*POD_CIDRS)),), clock()))
            agent.take(Listed(SERVICES, (read_service(web(EXTERNAL_4)),), clock()))
            agent.tick()
            assert agent.in_sync
            yield agent
