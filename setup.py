"""Packaging for PyPI and for Debian's dh-python; settings of tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "ipvs_node_agent" / "__init__.py").read_text(), re.MULTILINE
)
if VERSION is None:
    raise SystemExit("setup.py: ipvs_node_agent/__init__.py has no __version__")

setup(
    name="ipvs-node-agent",
    version=VERSION[1],
    description="Makes external IPs of Services reachable inside a kube-proxy IPVS cluster",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["ipvs_node_agent*"]),
    python_requires=">=3.9",
    # Debian 11's, with which the environment `debian11` proves it; debian/control has the same.
    install_requires=[
        "kubernetes>=12.0",
        "sh>=1.14",
        "PyYAML>=5.3",
        # Reads the node's name out of its client certificate.
        "cryptography>=3.3",
        # Makes kubernetes' connections as well; the agent streams with it.
        "urllib3>=1.26",
        "prometheus-client>=0.9",
    ],
    entry_points={"console_scripts": ["ipvs-node-agent = ipvs_node_agent.cli:main"]},
)
