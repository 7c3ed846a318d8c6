"""What `ipvs-node-agent run` goes round in: threads, signals and queue around the agent's mind.

One thread for each resource follows the API server and puts events into an inbox, and one follows
the credentials' files; the main thread does what is in there, and is the only one that touches the
agent and the kernel. It sleeps until something happens: work, a change that the kernel tells of, or
the time at which something is due.
"""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable

from ipvs_node_agent.apiserver.leash import Places
from ipvs_node_agent.commands.following import Following, start_thread
from ipvs_node_agent.config.file import load
from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.config.shown import changes
from ipvs_node_agent.errors import AgentError
from ipvs_node_agent.host import pods
from ipvs_node_agent.host.inbox import Inbox
from ipvs_node_agent.host.links import LinkFollower, Links
from ipvs_node_agent.host.memory import return_pages
from ipvs_node_agent.host.rundir import directory, own_names, remember_names
from ipvs_node_agent.host.systemd import ServiceManager
from ipvs_node_agent.iptables.backends import Kernel
from ipvs_node_agent.iptables.command import IDLE, launch
from ipvs_node_agent.iptables.conntrack import Conntrack
from ipvs_node_agent.iptables.proxymode import ProxyMode, proxy_mode
from ipvs_node_agent.iptables.table import NFT
from ipvs_node_agent.kubeconfig.reader import Reader
from ipvs_node_agent.nat.chains import OWN_INPUT_CHAIN
from ipvs_node_agent.observe import statussocket
from ipvs_node_agent.observe.nodeevents import EventRecorder
from ipvs_node_agent.observe.pages import Monitoring
from ipvs_node_agent.observe.status import Report
from ipvs_node_agent.observe.statussocket import StatusSocket
from ipvs_node_agent.observe.uncovered import UncoveredPods
from ipvs_node_agent.processes.isolated import Replacement
from ipvs_node_agent.processes.launcher import Launcher
from ipvs_node_agent.rules.here import ADDRESSES, API_SERVERS, Here
from ipvs_node_agent.sync.agent import GLANCE_PERIOD, Agent
from ipvs_node_agent.sync.state import Published, View

log = logging.getLogger(__name__)

# How often the kubelet's backend is looked for, as long as it is a guess, and afterwards.
_GUESSED_PERIOD, _BACKEND_PERIOD = 30.0, 300.0
# So long events are taken out of the queue before what they change is looked after.
_TAKING_SECONDS = 0.5
# So soon those go on who had to wait, unless they have no more.
_GOES_ON_SECONDS = 0.01
# A turn of more than so many seconds leaves free memory, which is given back so much later, or
# sooner where an earlier one left some.
_LONG_TURN, _FREED_SECONDS = 0.1, 3.0
# How long what was read of the tables at the start is kept for the first plan.
_AHEAD_SECONDS = 60.0
# How often kube-proxy is asked for its mode, if none of its chains and tables come or go.
_PROXY_PERIOD = 10.0
# How soon then; and how often, and how many times, where its word and its tables do not agree.
_PROXY_SOON, _PROXY_DOUBTS = 1.0, 15


def _kernel(
    launcher: Launcher,
    config: Config,
    moves: Callable[[], None],
    before: Kernel | None = None,
) -> Kernel:
    """The tables to program; the names of all chains of ours are kept for the time after."""
    names = own_names(config.chains, before.names if before else frozenset())
    if config.drop_invalid_input:
        names |= {OWN_INPUT_CHAIN}
    remember_names(names)
    backend = before.backend if before else NFT
    kernel = Kernel(launcher, config.iptables, names, config.chains.mark_masquerade, backend, moves)
    kernel.choose()
    return kernel


class MainLoop:
    """The main loop; only `run` starts threads, listens, and asks the kernel.

    `reader` reads the kubeconfig of `config`, and may have begun.
    """

    _kernel: Kernel
    _agent: Agent

    def __init__(
        self, config_path: Path | None, config: Config, manager: ServiceManager, reader: Reader
    ) -> None:
        self._config_path, self._config, self._manager = config_path, config, manager
        # Why the file is not what the agent goes by.
        self._config_fault = ""
        self._inbox = Inbox()
        self._stopped, self._proxy_moves = threading.Event(), threading.Event()
        # When the API server was last heard of with earlier credentials.
        self._contact = -math.inf
        self._monitoring = Monitoring(
            contact=lambda: max(self._contact, self._following.api.contact)
        )
        self._status_socket = StatusSocket(directory(), self._status)
        self._recorder = EventRecorder(lambda: self._monitoring.published)
        self._found = Links()
        self._uncovered = UncoveredPods(
            lambda: self._monitoring.published,
            lambda: self._found,
            lambda pods: self._inbox.put(lambda: self._agent.take_uncovered(pods)),
        )
        self._following = self._follow(reader)
        self._launcher = launch(manager.alive)
        self._conntrack = Conntrack(launch)
        self._links = LinkFollower(self._tell_links)
        # When the backend that is not in use is cleaned of what is ours, once all is in sync.
        self._clean_due = 0.0
        self._ready = False
        # When the main loop last went round.
        self._turned = time.monotonic()
        self._backend_due = 0.0
        # Where nothing has been planned by then, what was read ahead is too old.
        self._ahead_ends = math.inf
        # When there is memory to be given back.
        self._freed_due = math.inf

    def run(self) -> None:
        """Goes round until a signal ends it. Raises AgentError."""
        try:
            self._start()
            while not self._stopped.is_set():
                self._turn()
            self._manager.stopping()
        finally:
            self._stopped.set()
            self._proxy_moves.set()
            for one in (
                self._conntrack,
                self._links,
                self._following,
                self._monitoring,
                self._status_socket,
            ):
                one.stop()
        self._manager.status("Stopped; the rules stay in place")
        log.info("stopped; the rules stay in place")

    def _start(self) -> None:
        # First of all that takes time, as the list may take a second to arrive.
        self._following.start()
        start_thread(self._links.run, self._inbox.put)
        self._kernel = _kernel(self._launcher, self._config, self._proxy_moves.set)
        start_thread(self._follow_proxy_mode, self._inbox.put)
        start_thread(self._conntrack.run, self._inbox.put)
        tables, meters = self._kernel.programmers(self._monitoring.writes), self._monitoring.meters
        here, filters = Here(awaited=frozenset({ADDRESSES, API_SERVERS})), self._kernel.filters()
        self._agent = Agent(
            self._config, tables, time.monotonic, self._conntrack, meters, here, filters
        )
        self._backend_due = time.monotonic() + self._backend_period()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._inbox.put(self._stopped.set))
        signal.signal(signal.SIGHUP, lambda *_: self._inbox.put(self._reload))
        self._monitoring.configure(self._config)
        self._status_socket.start()
        self._publish()
        # Only a command that takes long has it called: each change would have to wait for it, else.
        self._launcher.busy = self._publish
        self._kernel.look_ahead()
        self._ahead_ends = time.monotonic() + _AHEAD_SECONDS

    def _follow(self, reader: Reader) -> Following:
        return Following(
            self._config,
            reader,
            self._inbox.put,
            self._inbox.put_in_turn,
            lambda event: self._agent.take(event),
            self._take_places,
            (self._recorder.run, self._uncovered.run),
        )

    def _take_places(self, places: Places, complete: bool) -> None:
        self._agent.take_here(lambda here, _: here.with_api_servers(places, complete))

    def _tell_links(self, found: Links) -> None:
        self._found = found
        # Read and worked out here, as the main thread waits for no file.
        addresses = frozenset(address for _, address in found.addresses)
        networks = pods.networks(found, pods.plugins())
        routed, blocks = pods.routed(found), pods.blocks(found)

        def told(here: Here, now: float) -> Here:
            here = here.with_addresses(addresses, now).with_pod_networks(networks)
            return replace(here.with_routes(routed, blocks), absent=found.absent)

        self._inbox.put(lambda: self._agent.take_here(told))

    def _follow_proxy_mode(self) -> None:
        found, doubts = ProxyMode(None), 0
        replacement = Replacement()
        with closing(launch(idle=IDLE)) as launcher:
            while not self._stopped.is_set():
                # What comes or goes from here on has another look.
                self._proxy_moves.clear()
                replacement.look()
                before, found = found, proxy_mode(launcher, found.mode, self._kernel.backend)
                if found != before:
                    self._inbox.put(partial(self._take_proxy_mode, found))
                # One who has just begun to move soon has all that tells of it.
                doubts = doubts + 1 if found.doubt else 0
                self._stopped.wait(_PROXY_SOON)
                if not 0 < doubts < _PROXY_DOUBTS:
                    self._proxy_moves.wait(_PROXY_PERIOD - _PROXY_SOON)

    def _take_proxy_mode(self, found: ProxyMode) -> None:
        self._agent.take_proxy_mode(found.mode, found.doubt)

    def _status(self) -> Report:
        """What `status` tells; asked by other threads, and answered by the main one."""
        reply: queue.SimpleQueue[View] = queue.SimpleQueue()
        self._inbox.put(lambda: reply.put(self._agent.view()))
        view: View | None = None
        with suppress(queue.Empty):
            view = reply.get(timeout=statussocket.PATIENCE)
        return self._monitoring.report(view)

    def _turn(self) -> None:
        """Does what is due, and waits for what comes next."""
        self._turned = time.monotonic()
        if not self._ready:
            # The first plan and the first write take long.
            self._publish()
        due = min(self._agent.tick(), self._backend_due)
        if self._agent.serves:
            self._after_sync()
        began, self._turned = self._turned, time.monotonic()
        if self._turned - began > _LONG_TURN:
            self._freed_due = min(self._freed_due, self._turned + _FREED_SECONDS)
        self._publish()
        self._sleep(min(due, self._manager.sign_due, self._ahead_ends, self._freed_due))
        self._work_off()
        if time.monotonic() >= self._ahead_ends:
            self._ahead_ends = math.inf
            self._kernel.forget_ahead()
        if time.monotonic() >= self._freed_due:
            self._freed_due = math.inf
            return_pages()
        if not self._stopped.is_set() and time.monotonic() >= self._backend_due:
            self._choose_backend()

    def _publish(self) -> None:
        sentence = self._agent.sentence()
        if self._config_fault:
            sentence += f"; keeping the old configuration: {self._config_fault}"
        self._manager.status(sentence)
        self._manager.alive()
        self._monitoring.published = Published(
            turned=self._turned,
            ready=self._ready,
            sentence=sentence,
            agent=self._agent.state(),
            config_stale=bool(self._config_fault),
            expires=self._following.api.expires,
            backend=self._kernel.backend,
            chains=self._config.chains,
        )

    def _sleep(self, due: float) -> None:
        """Waits for work or for what a table tells, until `due` or what a look shows is due."""
        told_by = self._agent.told_by
        longest = GLANCE_PERIOD if self._agent.untold else math.inf
        while True:
            left = due - time.monotonic()
            if self._inbox.wait(told_by, min(left, longest)) or left <= longest:
                return
            due = min(due, self._agent.due)

    def _work_off(self) -> None:
        """Does what others want."""
        end = time.monotonic() + _TAKING_SECONDS
        while not self._stopped.is_set() and time.monotonic() <= end:
            work = self._inbox.take()
            if work is not None:
                work()
            elif not self._inbox.goes_on(_GOES_ON_SECONDS):
                return

    def _choose_backend(self) -> None:
        now = time.monotonic()
        if self._kernel.choose():
            log.info("the node uses iptables-%s; moving there", self._kernel.backend)
            self._use(self._config)
        self._backend_due = now + self._backend_period()

    def _backend_period(self) -> float:
        return _BACKEND_PERIOD if self._kernel.certain else _GUESSED_PERIOD

    def _after_sync(self) -> None:
        if time.monotonic() >= self._clean_due:
            cleaned = self._kernel.clean_others()
            self._clean_due = math.inf if cleaned else time.monotonic() + _BACKEND_PERIOD
        if not self._ready:
            self._ready = True
            log.info("ready: the kernel (iptables-%s) holds all rules", self._kernel.backend)
            self._manager.ready()

    def _reload(self) -> None:
        with self._manager.reloading():
            self._read_again()

    def _read_again(self) -> None:
        try:
            config = load(self._config_path)
        except AgentError as error:
            log.error("keeping the old configuration: %s", error)
            self._config_fault = str(error)
            return
        self._config_fault = ""
        for change in changes(self._config, config):
            log.info("configuration: %s", change)
        old, self._config = self._config, config
        before = self._kernel
        self._kernel = _kernel(self._launcher, config, self._proxy_moves.set, before)
        before.close()
        self._use(config)
        self._monitoring.configure(config)
        if (config.kubeconfig, config.node_name) != (old.kubeconfig, old.node_name):
            self._following.stop()
            self._contact = max(self._contact, self._following.api.contact)
            self._following = self._follow(Reader(Path(config.kubeconfig)))
            self._following.start()
        log.info("read the configuration again")

    def _use(self, config: Config) -> None:
        tables = self._kernel.programmers(self._monitoring.writes)
        self._agent.reconfigure(config, tables, self._kernel.filters())
        self._clean_due = 0.0
