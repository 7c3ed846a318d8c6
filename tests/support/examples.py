"""How many examples a property is tried on: many in one environment, a tenth in the others.

What a property says of the pure core depends on no library, and little on Python's version.
"""

from __future__ import annotations

import os

from hypothesis import settings

# Where there are many, and where tests marked `once` run that name no other environment.
MAIN_ENVIRONMENT = "newest"
# Where this is; outside of all environments everything runs.
ENVIRONMENT = os.environ.get("IPVS_NODE_AGENT_ENVIRONMENT", "")
THOROUGH = ENVIRONMENT in ("", MAIN_ENVIRONMENT)


def examples(count: int) -> settings:
    """Hypothesis' settings for about `count` examples where they are many."""
    return settings(max_examples=count if THOROUGH else count // 10)
