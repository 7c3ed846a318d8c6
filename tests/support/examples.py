"""How many examples a property is tried on: many in one environment, a tenth in the others.

What a property says of the pure core depends on no library, and little on Python's version. With
IPVS_NODE_AGENT_LONG set, a hunt that its test marks as worth it takes twenty times as many.
"""

from __future__ import annotations

import os

from hypothesis import settings

# Where there are many, and where tests marked `once` run that name no other environment.
MAIN_ENVIRONMENT = "newest"
# Where this is; outside of all environments everything runs.
ENVIRONMENT = os.environ.get("IPVS_NODE_AGENT_ENVIRONMENT", "")
# A build of the package has no minutes for what is proved elsewhere.
FEW = bool(os.environ.get("IPVS_NODE_AGENT_FEW_EXAMPLES"))
THOROUGH = ENVIRONMENT in ("", MAIN_ENVIRONMENT) and not FEW

LONG = bool(os.environ.get("IPVS_NODE_AGENT_LONG"))


def examples(count: int) -> settings:
    """Hypothesis' settings for about `count` examples where they are many."""
    return settings(max_examples=count if THOROUGH else count // 10)


def hunt(count: int) -> settings:
    """The same, and many more where there is all the time in the world."""
    return settings(max_examples=20 * count) if LONG else examples(count)
