"""ipvs-node-agent: external IPs that work from inside a kube-proxy IPVS cluster."""

__version__ = "0.1.0"
