"""`python3 -m tests.observe [quick]` plays the scene and prints the dashboard of it as SVG."""

from __future__ import annotations

import sys

from tests.observe.draw import draw
from tests.observe.scene import FULL, QUICK, run


def main(arguments: list[str]) -> int:
    """Plays and prints; gives the exit status."""
    if arguments not in ([], ["quick"]):
        print(__doc__, file=sys.stderr)
        return 2
    print(draw(run(QUICK if arguments else FULL)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
