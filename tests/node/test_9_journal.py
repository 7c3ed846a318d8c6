"""What the journal holds of all this, from the first installation to the last purge."""

from __future__ import annotations

import itertools
import re

from tests.node.scene import Scene

# All that an operator has to read on this way; a line of another kind needs a thought.
_SENTENCES = (
    r"ready: the kernel \(iptables-(nft|legacy)\) holds all rules",
    r"stopped; the rules stay in place",
    r"read the configuration again",
    r"configuration: \w+ was .+ and is .+",
    # A reload that fails, in the words of the command that looks at the file first.
    r"ipvs-node-agent: configuration /\S+( line \d+)?: .+",
    r"IPv[46]: (wrote|repaired) .+ in \d+ ms.*",
    r"kubeconfig /etc/kubernetes/kubelet.conf: No such file or directory .*",
    r"read the credentials in /etc/kubernetes/kubelet.conf again, since they changed",
    r"metrics and health are served at 127\.0\.0\.1:10273",
    r"API server \S+: (cannot be reached|the connection broke): .* \(trying again; .*\)",
    r"the API server answers again",
    r"pods are matched by (pod CIDR|interface): .+",
    r"default/(near|vip|shared-\d+): .+ \(\d+ ms\)",
    r"kube-proxy is in (iptables|nftables) mode, which does not need this agent: no Service .*",
    r"kube-proxy is in ipvs mode: Services get their rules",
    r"kube-proxy's mode is in doubt, and the rules stay as they are: kube-proxy says .*",
)


def test_it_says_only_what_an_operator_wants_to_know(scene: Scene) -> None:
    said = re.compile("|".join(f"(?:{sentence})" for sentence in _SENTENCES))
    lines = scene.journal()
    assert any("ready: " in line for line in lines)
    assert [line for line in lines if not said.fullmatch(line)] == []
    # Installations, restarts and boots take five lines each, and each rival a few repairs.
    assert len(lines) < 150


def test_the_agent_in_the_journal_never_crashed_by_itself(scene: Scene) -> None:
    text = scene.machine.run("journalctl -q -o cat -u ipvs-node-agent")
    assert "Traceback" not in text
    results = re.findall("Failed with result '(.+)'", text)
    assert [result for result, _ in itertools.groupby(results)] == scene.caused
