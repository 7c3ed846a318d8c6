"""Which Services are still in memory, whoever keeps them."""

from __future__ import annotations

import gc

from ipvs_node_agent.model.objects import Service


def living(key: str) -> list[Service]:
    """All Services of that key that this process holds, also such as have changed since."""
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is Service and each.key == key]
