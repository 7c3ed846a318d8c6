"""Runs the tests on machines with real IPVS: `make node-test`.

python3 -m tests.node                        # Debian 12 and Debian 13, both at once
python3 -m tests.node debian13 -k install    # one of them, with pytest's arguments
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.binaries import NotObtained, obtain
from tests.environments.chroot import need_debootstrap
from tests.node import image

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = image.CACHE / "packages"
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|deselected)")
_SUMMARY = re.compile(r"=+ .* in [\d.]+s.*=+")


class Run:
    """The tests on one release, in a process of their own."""

    def __init__(self, release: str, arguments: Sequence[str], alone: bool) -> None:
        self.release, self.log = release, image.CACHE / f"{release}.log"
        self.counts: Counter[str] = Counter()
        self._alone = alone
        self._began = time.monotonic()
        variables = {
            "IPVS_NODE_AGENT_RELEASE": release,
            "IPVS_NODE_AGENT_PACKAGES": str(PACKAGES),
            "KUBEBUILDER_ASSETS": str(obtain("newest")),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        options = ["-p", "no:cacheprovider", "-v", "--maxfail=3", "--durations=8", "-rA", "--color=no"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, "tests/node", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        """Shows how far it is; the whole text is in the log, and shown where something failed."""
        assert self._process.stdout is not None
        with self.log.open("w") as log:
            for line in self._process.stdout:
                log.write(line)
                if _SUMMARY.fullmatch(line.strip()):
                    for number, what in _COUNT.findall(line):
                        self.counts[what.rstrip("s")] += int(number)
                elif self._alone:
                    print(line, end="", flush=True)
                elif re.search(r"::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", line):
                    seconds = time.monotonic() - self._began
                    print(f"{seconds:4.0f} s  {self.release}  {line.split('/')[-1]}", end="", flush=True)

    def wait(self) -> bool:
        """Whether all tests passed."""
        status = self._process.wait()
        self._reader.join()
        self.seconds = time.monotonic() - self._began
        if status and not self._alone:
            print(f"{self.release}: all of {self.log}:\n{self.log.read_text()}")
        return status == 0

    def stop(self) -> None:
        """Ends it; the machine goes with it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()


def build_packages() -> None:
    """This version, and the one after it."""
    print("building the package, and the next version of it", flush=True)
    build = str(REPOSITORY / "packaging/build-deb")
    for old in PACKAGES.glob("*"):
        old.unlink()
