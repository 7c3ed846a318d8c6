"""kube-proxy's mode, by its own word."""

from __future__ import annotations

import re

from ipvs_node_agent.host.localpage import asked
from ipvs_node_agent.host.procfs import user_at_the_far_end

# kube-proxy's metricsBindAddress, by default.
_ADDRESS = ("127.0.0.1", 10249)


def proxy_mode(known: str | None = None) -> str | None:
    """kube-proxy's mode; `known`, the last one, as long as it does not tell.

    As long as it does not run, every account may answer in its place, and may go on answering when
    it runs. So a new word counts from root alone, who has to have the other end of the connection
    over which it came.
    """
    with asked(_ADDRESS, "/proxyMode") as answer:
        said = answer.text.strip()
        if answer.ends is None or said == known or not re.fullmatch(r"[a-z]{1,20}", said):
            return known
        return said if user_at_the_far_end(*answer.ends) == 0 else known
