"""Where installers of Kubernetes put a node's own kubeconfig, if not where kubeadm does."""

from __future__ import annotations

import os

# The kubelet's own of k3s, RKE2, k0s and MicroK8s, as their documentation and sources have them.
PATHS = (
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "/var/lib/k0s/kubelet.conf",
    "/var/snap/microk8s/current/credentials/kubelet.config",
)


def elsewhere() -> str:
    """The kubeconfig of another installer's that is there; empty where there is none."""
    return next(filter(os.path.isfile, PATHS), "")
