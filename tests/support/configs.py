"""Texts that are to be configurations, and what is wrong with them."""

from __future__ import annotations

import pytest

from ipvs_node_agent.config.file import parse
from ipvs_node_agent.config.settings import Chains, Config, IptablesOptions, ServiceOptions
from ipvs_node_agent.errors import UsageError
from ipvs_node_agent.model.addresses import parse_network

FILE = "/etc/ipvs-node-agent/config.yaml"
# Every key, and all but what the file is with another value than its default.
EVERY_KEY = """\
apiVersion: ipvs-node-agent/v1
kind: Configuration
kubeconfig: /root/.kube/config
nodeName: worker-1.example.com
podCIDRs: [10.240.2.128/25, "fd00:10:240:2::/64"]
podInterfaces: [cali+, cni0]
chains:
  prerouting: LB_PRE
  output: LB_OUT
  markMasquerade: MY-MARK
  servicesPerChain: 32
masquerade: HostOnly
services:
  externalIPs: true
  externalTrafficPolicy: Local
  allowedExternalCIDRs: [10.19.0.0/16]
  matchPorts: Always
iptables:
  backend: legacy
  lockWaitSeconds: 30
driftCheckPeriod: 1m30s
metricsBindAddress: "[::1]:9000"
serviceMetrics: false
dropInvalidInput: true
"""
EVERY_VALUE = Config(
    kubeconfig="/root/.kube/config",
    node_name="worker-1.example.com",
    pod_cidrs=(parse_network("10.240.2.128/25"), parse_network("fd00:10:240:2::/64")),
    pod_interfaces=("cali+", "cni0"),
    chains=Chains("LB_PRE", "LB_OUT", "MY-MARK", 32),
    masquerade="HostOnly",
    services=ServiceOptions(True, "Local", (parse_network("10.19.0.0/16"),), "Always"),
    iptables=IptablesOptions("legacy", 30),
    drift_check_period=90.0,
    metrics_bind_address="[::1]:9000",
    service_metrics=False,
    drop_invalid_input=True,
)


def refusal(text: str) -> str:
    """The whole line that is printed for `text`, less the program's name."""
    with pytest.raises(UsageError) as caught:
        parse(text, FILE)
    assert caught.value.exit_status == 2
    message = str(caught.value)
    assert message.isprintable()
    return message


def at(line: int) -> str:
    return f"configuration {FILE} line {line}: "


def nested(key: str, value: str) -> str:
    """A file that sets `key`, which may be SECTION.KEY, to `value`."""
    section, _, name = key.rpartition(".")
    return f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"
