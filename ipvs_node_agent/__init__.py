"""ipvs-node-agent: agent that makes external IPs reachable inside a kube-proxy IPVS cluster."""

__version__ = "0.1.0"
