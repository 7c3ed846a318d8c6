"""`python3 -m tests.picture`: draws docs/explain.svg and docs/status.svg anew, from real runs.

As root, in a minute. As in the demo, namespaces stand for a node and its neighbours. Their kernel
need not have IPVS, so the picture says what that holds.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest

from ipvs_node_agent.commands import status
from ipvs_node_agent.commands.explain import as_text, gathered
from ipvs_node_agent.config.file import load
from ipvs_node_agent.explain.lines import Explanation
from ipvs_node_agent.explain.target import target
from ipvs_node_agent.explain.verdict import explain
from ipvs_node_agent.host.ipvs import VirtualServer
from ipvs_node_agent.kubeconfig.reader import Reader, settings
from ipvs_node_agent.model.addresses import FAMILIES, parse_address
from ipvs_node_agent.observe import statussocket
from tests.kernel.conftest import OTHER, WEB, WEB6, Bed, node_bed
from tests.support.documents import EXPLAIN_PICTURE, STATUS_PICTURE
from tests.support.kubeproxy import proxy_mode
from tests.support.situations import virtual
from tests.support.tables import add_foreign_rules
from tests.support.topology import CLUSTER_IP, EXTERNAL_IP, Topology, ask, topology
from tests.support.waiting import eventually

REFUSED = ("127.0.0.1", "bad", "10.231.2.62")
ASKED = "10.19.20.201:80"
_LETTER, _LINE, _MARGIN, _SIZE = 6.63, 16, 14, 11
_COLOURS = {"31": "#ff7b72", "32": "#7ee787", "33": "#e3b341"}
_PIECE = re.compile(r"\x1b\[(\d+)m(.*?)\x1b\[0m|([^\x1b]+)")


@dataclass
class Node(Bed):
    """A node with its neighbours, and what IPVS is to have."""

    around: Topology
    ipvs: tuple[VirtualServer, ...] = ()

    def explained(self, asked: str) -> list[Explanation]:
        """What is said, in this process."""
        with self.namespace.enter(), pytest.MonkeyPatch.context() as patch:
            patch.setenv("RUNTIME_DIRECTORY", str(self.agent.runtime))
            patch.setattr("ipvs_node_agent.host.ipvs.virtual_servers", lambda: self.ipvs)
            # As in the fixture `kubeconfig_read_here`.
            patch.setattr(Reader, "_read_elsewhere", lambda reader: settings(reader.path))
            what = target(asked)
            return explain(gathered(load(self.agent.config), what), what)

    def shell(self, script: str) -> None:
        """Runs a script, in which `nat` and `nat6` are iptables."""
        nat = "".join(
            f'nat{six} () {{ ip{six}tables-{self.backend} -w 10 -t nat "$@"; }}\n'
            for six in ("", "6")
        )
        self.namespace.run("sh", "-euc", nat + script)


@contextmanager
def explained_node(backend: str, directory: Path) -> Iterator[Node]:
    """A node whose agent runs and has made its rules, with kube-proxy's and Docker's behind."""
    with ExitStack() as stack:
        around = stack.enter_context(topology())
        for family in FAMILIES:
            add_foreign_rules(around.node, family, backend)
        bed = stack.enter_context(node_bed(around.node, backend, directory))
        bed.put(WEB, WEB6)
        bed.put(OTHER)
        bed.agent.start()
        made = Node(**vars(bed), around=around)
        made.ipvs = tuple(
            virtual(parse_address(address), "tcp", 80, 1)
            for address in (*CLUSTER_IP.values(), OTHER[2])
        )
        yield made


def pictured(node: Node, colours: bool = False) -> str:
    """What is printed where all endpoints of a Service are terminating."""
    for client in (node.around.pod, node.around.node):
        ask(client, EXTERNAL_IP[4])
    usual = node.ipvs
    terminating = parse_address(CLUSTER_IP[4]), parse_address(EXTERNAL_IP[4])
    node.ipvs = tuple(virtual(each, "tcp", 80, 0, 0) for each in terminating)
    with proxy_mode(node.namespace, "ipvs"):
        found = node.explained(ASKED)
    node.ipvs = usual
    return f"# ipvs-node-agent explain {ASKED}\n{as_text(found, colours)}"


def use(bed: Bed, around: Topology) -> None:
    """Has a pod connect to each of the Service's external IPs three times, and the host once."""
    for external in EXTERNAL_IP.values():
        for client in (*[around.pod] * 3, around.node):
            ask(client, external)

    def counted() -> bool:
        (web,) = statussocket.ask(bed.agent.runtime).services
        return (web.pod.packets, web.host.packets) == (6, 2)

    eventually(counted, timeout=60)


def pictured_status(directory: Path) -> str:
    """What `status` prints where a pod and the host have used a Service, and one is refused."""
    with ExitStack() as stack:
        around = stack.enter_context(topology())
        for family in FAMILIES:
            add_foreign_rules(around.node, family, "nft")
        bed = stack.enter_context(node_bed(around.node, "nft", directory))
        bed.put(WEB, WEB6, REFUSED)
        bed.agent.start()
        use(bed, around)
        made = statussocket.ask(bed.agent.runtime)
        return f"# ipvs-node-agent status\n{status.as_text(made, time.time(), colours=True)}"


def draw(text: str) -> str:
    """A terminal with `text`, whose colours are those of a terminal, as SVG."""
    lines = text.splitlines()
    longest = max(len(re.sub(r"\x1b\[\d+m", "", line)) for line in lines)
    width, height = round(longest * _LETTER + 2 * _MARGIN), len(lines) * _LINE + 2 * _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' font-family="\'DejaVu Sans Mono\', Menlo, Consolas, monospace" font-size="{_SIZE}"'
        ' fill="#e6edf3" xml:space="preserve">',
        f"<title>{escape(lines[0][2:])}, as a real run printed it</title>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#161b22"/>',
    ]
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        y = _MARGIN + number * _LINE - 4
        spans = [
            f'<tspan fill="{_COLOURS[found[1]]}">{escape(found[2])}</tspan>'
            if found[1]
            else f"<tspan>{escape(found[3])}</tspan>"
            for found in _PIECE.finditer(line)
        ]
        parts.append(f'<text x="{_MARGIN}" y="{y}">{"".join(spans)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Draws the pictures, in docs or another folder."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else EXPLAIN_PICTURE.parent
    with tempfile.TemporaryDirectory() as directory, explained_node("nft", Path(directory)) as node:
        text = draw(pictured(node, colours=True))
        (folder / EXPLAIN_PICTURE.name).write_text(text, "utf-8")
    with tempfile.TemporaryDirectory() as directory:
        text = draw(pictured_status(Path(directory)))
        (folder / STATUS_PICTURE.name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
