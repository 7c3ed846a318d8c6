"""In the place of the package `kubernetes`, for an agent whose kubeconfig has no token.

To import the package takes half a second of each agent that a test starts. All that the agent asks
of it for such a kubeconfig is which headers say who the user is, and there are none; see
testbed/test_standin.py.
"""

from __future__ import annotations

import sys
from typing import Any


class Configuration:
    """What a client of the package is made with."""

    def auth_settings(self) -> dict[str, Any]:
        """No headers."""
        return {}


def load_kube_config_from_dict(
    document: Any, client_configuration: Configuration, persist_config: bool
) -> None:
    """Nothing to take over; raises where there is something."""
    if document["users"][0]["user"]:
        raise ValueError("the stand-in knows no user")


# Both are found in modules of the package.
sys.modules["kubernetes.client"] = sys.modules["kubernetes.config"] = sys.modules[__name__]
