"""Runs the tests on machines with real IPVS: `make node-test`.

python3 -m tests.node                        # Debian 12 and Debian 13, both at once
python3 -m tests.node debian13 -k install    # one of them, with pytest's arguments
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.binaries import NotObtained, obtain
from tests.node import image

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = image.CACHE / "packages"
# What the tests start is gone with the first process of its namespace, and that is gone with us.
_ENDS_WITH_US = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
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
        options = [
            *("-p", "no:cacheprovider", "-v", "-rA"),
            "--maxfail=8",
            "--durations=8",
            "--color=no",
        ]
        self._process = subprocess.Popen(
            [*_ENDS_WITH_US, sys.executable, "-m", "pytest", *options, "tests/node", *arguments],
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
        with self.log.open("w", buffering=1) as log:
            for line in self._process.stdout:
                log.write(line)
                if _SUMMARY.fullmatch(line.strip()):
                    for number, what in _COUNT.findall(line):
                        self.counts[what.rstrip("s")] += int(number)
                elif self._alone:
                    print(line, end="", flush=True)
                elif re.search(r"::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)", line):
                    seconds = time.monotonic() - self._began
                    print(
                        f"{seconds:4.0f} s  {self.release}  {line.split('/')[-1]}",
                        end="",
                        flush=True,
                    )

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
            # unshare is deaf to all other signals.
            self._process.kill()
            self._process.wait()


def build_packages() -> None:
    """This version, and the one after it."""
    print("building the package, and the next version of it", flush=True)
    for name, suffix in (("this", ()), ("next", ("--suffix", "+test1"))):
        folder = PACKAGES / name
        shutil.rmtree(folder, ignore_errors=True)
        build = [str(REPOSITORY / "packaging/build/build-deb"), *suffix, str(folder)]
        # Built and tested elsewhere with all its checks.
        subprocess.run(build, check=True, env={**os.environ, "DEB_BUILD_OPTIONS": "nocheck"})
        (built,) = folder.glob("*.deb")
        built.replace(PACKAGES / f"{name}.deb")


def main(arguments: Sequence[str]) -> int:
    """Runs what the arguments say; 0 where all passed."""
    began = time.monotonic()
    releases = arguments[:1] or list(image.RELEASES)
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with (PACKAGES / "lock").open("w") as lock:
        # Two runs at once would be in each other's way, by their processors alone.
        fcntl.flock(lock, fcntl.LOCK_EX)
        image.obtain_all(releases)
        build_packages()
        runs = [Run(release, arguments[1:], alone=bool(arguments)) for release in releases]
        try:
            good = [run.wait() for run in runs]
        finally:
            for run in runs:
                run.stop()
    total = sum((run.counts for run in runs), Counter[str]())
    for run in runs:
        print(f"{run.release}: {_shown(run.counts)} in {run.seconds:.0f} s")
    print(f"{_shown(total)} in {time.monotonic() - began:.2f}s")
    return 0 if all(good) else 1


def _shown(counts: Counter[str]) -> str:
    """As pytest says it."""
    words = [word for word in ("failed", "error", "passed") if counts[word] or word == "passed"]
    words += sorted(counts.keys() - set(words))
    return ", ".join(f"{counts[word]} {word}" for word in words)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except (NotObtained, image.NotMade) as error:
        sys.exit(f"error: {error}")
