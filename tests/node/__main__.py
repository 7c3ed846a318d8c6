"""Runs the tests on machines with real IPVS: `make node-test`.

python3 -m tests.node                        # Debian 12 and Debian 13, both at once
python3 -m tests.node debian13 -k install    # one of them, with pytest's arguments
ARCH=arm64 python3 -m tests.node             # what architecture.py has for another processor
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.binaries import obtain
from tests.node import image
from tests.node.architecture import ARCHITECTURE, FOREIGN
from tests.support.cache import NotMade
from tests.support.places import REPOSITORY

PACKAGES = image.CACHE / "packages"
# What the tests start is gone with the first process of its namespace, and that is gone with us.
_ENDS_WITH_US = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
# What runs beside the machines has their processor as well: etcd and kube-apiserver.
_EMULATED = (REPOSITORY / "tests/environments/emulated", ARCHITECTURE.name) if FOREIGN else ()
_CHAPTERS = [f"tests/node/{name}.py" for name in ARCHITECTURE.chapters] or ["tests/node"]
_PYTEST = ("-p", "no:cacheprovider", "-v", "-rA", "--maxfail=8", "--durations=8", "--color=no")
_RESULT = re.compile(r".*/(.*::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS).*)")
_SUMMARY = re.compile(r"=+ .* in [\d.]+s.*=+")
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|deselected)")


async def run(name: str, arguments: Sequence[str], alone: bool, counts: Counter[str]) -> int:
    """Runs the tests on one node; exit status. Who is not alone shows only how far it is."""
    label = f"{ARCHITECTURE.name}-{name}" if FOREIGN else name
    log, began, node = image.CACHE / f"{label}.log", time.monotonic(), ARCHITECTURE.nodes[name]
    variables = {
        "IPVS_NODE_AGENT_RELEASE": node.release,
        "IPVS_NODE_AGENT_BACKEND": node.backend,
        "IPVS_NODE_AGENT_PACKAGES": str(PACKAGES),
        "IPVS_NODE_AGENT_PATIENCE": str(ARCHITECTURE.patience),
        "KUBEBUILDER_ASSETS": str(_binaries()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    process = await asyncio.create_subprocess_exec(
        *(*_ENDS_WITH_US, *_EMULATED),
        *(sys.executable, "-m", "pytest", *_PYTEST, *_CHAPTERS, *arguments),
        cwd=REPOSITORY,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 24,
    )
    assert process.stdout is not None
    own: Counter[str] = Counter()
    try:
        with log.open("w", buffering=1) as file:
            async for line in process.stdout:
                text = line.decode(errors="replace").rstrip("\n")
                print(text, file=file)
                result = _RESULT.match(text)
                if _SUMMARY.fullmatch(text):
                    own.update({what.rstrip("s"): int(n) for n, what in _COUNT.findall(text)})
                elif alone:
                    print(text, flush=True)
                elif result:
                    seconds = time.monotonic() - began
                    print(f"{seconds:4.0f} s  {name}  {result[1]}", flush=True)
        status = await process.wait()
    finally:
        if process.returncode is None:
            # unshare is deaf to all other signals.
            process.kill()
            await process.wait()
    if status and not alone:
        print(f"{name}: all of {log}:\n{log.read_text()}")
    print(f"{name}: {_shown(own)} in {time.monotonic() - began:.0f} s", flush=True)
    counts.update(own)
    return status


def build_packages() -> None:
    """This version, and the one after it."""
    print("building the package, and the next version of it", flush=True)
    for name, suffix in (("this", ()), ("next", ("--suffix", "+test1"))):
        folder = PACKAGES / name
        shutil.rmtree(folder, ignore_errors=True)
        build = [REPOSITORY / "packaging/build/build-deb", *suffix, folder]
        # Built and tested elsewhere with all its checks.
        subprocess.run(build, check=True, env={**os.environ, "DEB_BUILD_OPTIONS": "nocheck"})
        (built,) = folder.glob("*.deb")
        built.replace(PACKAGES / f"{name}.deb")


async def run_all(names: Sequence[str], arguments: Sequence[str], alone: bool) -> int:
    """Runs the tests on these nodes, at the same time or in turn; 0 where all passed."""
    task, began, counts = asyncio.current_task(), time.monotonic(), Counter[str]()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    async def one(name: str) -> int:
        return await run(name, arguments, alone, counts)

    if ARCHITECTURE.at_once:
        statuses = await asyncio.gather(*map(one, names))
    else:
        statuses = [await one(name) for name in names]
    print(f"{_shown(counts)} in {time.monotonic() - began:.2f}s")
    return int(any(statuses))


def main(arguments: Sequence[str]) -> int:
    """Runs what the arguments say; 0 where all passed."""
    names = arguments[:1] or list(ARCHITECTURE.nodes)
    unknown = set(names) - ARCHITECTURE.nodes.keys()
    if unknown:
        raise NotMade(f"{unknown.pop()} is not one of {', '.join(ARCHITECTURE.nodes)}")
    PACKAGES.mkdir(parents=True, exist_ok=True)
    with (PACKAGES / "lock").open("w") as lock:
        # Two runs at once would be in each other's way, by their processors alone.
        fcntl.flock(lock, fcntl.LOCK_EX)
        image.obtain_all({ARCHITECTURE.nodes[name].release for name in names})
        build_packages()
        try:
            return asyncio.run(run_all(names, arguments[1:], alone=bool(arguments)))
        except asyncio.CancelledError:
            return 143


def _binaries() -> Path:
    return obtain("newest", ARCHITECTURE.name if FOREIGN else "")


def _shown(counts: Counter[str]) -> str:
    """As pytest says it."""
    words = [word for word in ("failed", "error", "passed") if counts[word] or word == "passed"]
    words += sorted(counts.keys() - set(words))
    return ", ".join(f"{counts[word]} {word}" for word in words)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotMade as error:
        sys.exit(f"error: {error}")
