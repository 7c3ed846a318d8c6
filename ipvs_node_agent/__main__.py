"""`python3 -m ipvs_node_agent`, the same as the command `ipvs-node-agent`."""

import sys

from ipvs_node_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
