"""`make demo`: the main job on real packets, step by step; the exit status tells whether it worked.

Namespaces stand for a node, a pod on it, a backend and a stranger on the LAN. The backend holds
the ClusterIPs in place of IPVS, so that the demo runs on any kernel with iptables.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

from ipvs_node_agent.iptables.table import NFT
from ipvs_node_agent.model.addresses import FAMILIES, IPV4
from tests.support.agentprocess import agent_process
from tests.support.apiserver import ApiServer
from tests.support.pki import Pki
from tests.support.tables import add_mark_masq, foreign, ours, saved
from tests.support.topology import CLUSTER_IP, EXTERNAL_IP, Topology, ask, topology
from tests.support.waiting import eventually

OBJECTS = Path(__file__).parent / "data" / "two-services.yaml"
REFUSED = "ConnectionRefusedError"
EXTERNAL, SECOND = EXTERNAL_IP[4], "10.19.22.57"


class Failed(Exception):
    """A step did not do what it says."""


@contextmanager
def step(text: str) -> Iterator[None]:
    """Says what is done, and how it ended."""
    print(f"\n=> {text}", flush=True)
    started = time.monotonic()
    try:
        yield
    except (AssertionError, OSError) as error:
        print(f"   failed: {error}", flush=True)
        raise Failed from error
    print(f"   ok ({time.monotonic() - started:.1f} s)", flush=True)


def show(text: str) -> None:
    """Prints `text` indented."""
    print("".join(f"   {line}\n" for line in text.splitlines()), end="", flush=True)


def expect(what: str, found: str, wanted: str) -> None:
    """Shows what was found, which must be what was wanted."""
    show(f"{what}: {found}")
    assert found == wanted, f"wanted {wanted}"


def chains(t: Topology) -> str:
    """The agent's chains as an administrator would look at them."""
    listing = ["iptables-nft", "-w", "10", "-t", "nat", "-nvL"]
    return "\n".join(t.node.run(*listing, chain) for chain in ("IPVS_OUTPUT", "IPVS_PREROUTING"))


def demo(stack: ExitStack, directory: Path) -> None:
    """Runs all steps; raises Failed at the first that fails."""
    with step("Make network namespaces for a node, a pod, a backend and a stranger on the LAN"):
        t = stack.enter_context(topology())
        for family in FAMILIES:
            add_mark_masq(t.node, family, NFT)
        before = foreign(saved(t.node, IPV4, NFT))
        show(
            f"the node has {EXTERNAL} as kube-proxy would bind it; the backend has {CLUSTER_IP[4]}"
        )
    with step("Start an API server with two LoadBalancer Services and the Node worker-1"):
        pki = Pki()
        certificate = directory / "kubelet-client-current.pem"
        pki.write_node_client(certificate, "worker-1")
        api = stack.enter_context(ApiServer(netns=str(t.node.path), pki=pki))
        for item in yaml.safe_load_all(OBJECTS.read_text()):
            api.put(item)
        pki.write_kubeconfig(directory / "kubelet.conf", api.url, certificate)
        show(f"{api.url}, with the node's own client certificate")
    with step(f"Without the agent, {EXTERNAL}:80 is out of reach"):
        expect("from the pod", ask(t.pod, EXTERNAL), REFUSED)
        expect("from the host", ask(t.node, EXTERNAL), REFUSED)
    with step("Start ipvs-node-agent on the node"):
        settings = {
            "kubeconfig": str(directory / "kubelet.conf"),
            "iptables": {"backend": NFT},
            "metricsBindAddress": "",
        }
        agent = stack.enter_context(agent_process(t.node, directory / "agent", settings))
        agent.start()
        show(agent.log)
    with step("Its chains"):
        show(chains(t))
    with step(f"With the agent, {EXTERNAL}:80 answers"):
        node_address = "10.200.0.1"
        expect("from the pod, the backend saw", ask(t.pod, EXTERNAL), node_address)
        expect("from the host, the backend saw", ask(t.node, EXTERNAL), node_address)
        expect("from the stranger, as before", ask(t.outside, EXTERNAL), REFUSED)
    with step("Delete Service lb-service-2"):
        api.delete("Service", "default", "lb-service-2")
        eventually(lambda: SECOND not in chains(t), f"the rules for {SECOND} going")
        show(chains(t))
        assert EXTERNAL in chains(t), "lb-service-1 lost its rules"
    with step("Stop the agent: its rules stay, and connections go on"):
        assert agent.stop() == 0, "exit status"
        expect("from the pod, the backend saw", ask(t.pod, EXTERNAL), node_address)
    with step("Clean up: its chains are gone, the others are as before"):
        show(agent.call("cleanup").stdout)
        table = saved(t.node, IPV4, NFT)
        assert ours(table) == [], "some of its rules are left"
        assert foreign(table) == before, "somebody else's rules changed"


def main() -> int:
    """Runs the demo, and gives the exit status."""
    directory = Path(tempfile.mkdtemp(prefix="ipvs-node-agent-demo-"))
    try:
        with ExitStack() as stack:
            demo(stack, directory)
    except Failed:
        print("\nThe demo failed.")
        return 1
    finally:
        shutil.rmtree(directory)
    print("\nThe demo worked.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
