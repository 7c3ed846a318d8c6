"""Runs a command in one of the Debian userlands that the tests are for, or in several of them.

An environment is a debootstrap chroot. It is made when first used, kept in a cache, and made anew
when its recipe changes or when it is too old. A command runs in it as root, in namespaces of its
own: it sees none of the host's interfaces and rules, and nothing it does outlasts it.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.environments.chroot import (
    REPOSITORY,
    Say,
    apt,
    bootstrap,
    hold,
    inside,
    isolated,
    need_debootstrap,
    passed_on,
    tail,
)
from tests.support.cache import cache

CACHE = cache("environments")

MAX_AGE_DAYS = 14
AT_ONCE = 2
NOT_MADE = 125  # The exit status when there is no environment to run the command in.

TOOLS = "iptables iproute2 ipset conntrack nftables procps util-linux curl openssl"
LIBRARIES = (
    "python3-kubernetes python3-sh python3-yaml python3-cryptography python3-prometheus-client"
    " python3-urllib3"
)
# Debian's, with what makes a release and an apt repository, and looks at man pages.
FROM_DEBIAN = (
    f"{LIBRARIES}"
    " python3-pytest python3-pytest-xdist python3-hypothesis python3-aiohttp python3-trustme"
    " prometheus dpkg-dev git gnupg mandoc reprepro"
)
# The reference CNI plugins, which tests/kernel/test_network_plugins.py has pods made by.
NETWORK_PLUGINS = "containernetworking-plugins"
TEST_TOOLS = "pytest pytest-xdist hypothesis aiohttp trustme"
FROM_PYPI = f"kubernetes sh PyYAML cryptography prometheus-client {TEST_TOOLS}"


@dataclass(frozen=True)
class Recipe:
    """What an environment is made of; a requirement file in `pip` is seen from the repository.

    What comes from PyPI sees Debian's libraries only where it has none of the program's own.
    """

    release: str
    apt: str
    pip: str = ""
    # What from PyPI builds that of `pip` which has no wheel; pip by itself takes the newest.
    builders: str = ""
    # A Python that this Debian does not have, from the host's pyenv.
    python: str = ""
    # Another Debian, whose iptables it has.
    iptables: str = ""

    @property
    def venv(self) -> str:
        """The options of its virtual environment."""
        return "--system-site-packages " if LIBRARIES in self.apt else ""


# Those with the most to run come first, so that the last to end has company for longest.
RECIPES = {
    "newest": Recipe(
        "sid",
        f"{TOOLS} python3-all-venv shellcheck",
        f"{FROM_PYPI} types-PyYAML -r tests/environments/lint.txt",
    ),
    "oldest": Recipe("bullseye", f"{TOOLS} python3-venv", FROM_PYPI),
    "debian12": Recipe("bookworm", f"{TOOLS} {FROM_DEBIAN}"),
    "debian13": Recipe("trixie", f"{TOOLS} {FROM_DEBIAN} {NETWORK_PLUGINS}"),
    # Its libraries are the oldest that setup.py and debian/control take; its pytest is too old.
    "debian11": Recipe("bullseye", f"{TOOLS} {LIBRARIES} python3-venv", TEST_TOOLS),
    # Ubuntu's archives are not asked: its versions, from PyPI and Debian (docs/support.md).
    "ubuntu2204": Recipe(
        "bookworm",
        f"{TOOLS} python3 gcc libc6-dev libyaml-dev",
        "kubernetes==12.0.1 sh==1.14.2 PyYAML==5.4.1 prometheus-client==0.9.0"
        f" cryptography==3.4.8 urllib3==1.26.5 {TEST_TOOLS}",
        builders="setuptools wheel 'Cython<3'",
        python="3.10",
        iptables="bullseye",
    ),
    "ubuntu2404": Recipe(
        "bookworm",
        f"{TOOLS} python3",
        "kubernetes==22.6.0 sh==1.14.2 PyYAML==6.0.1 prometheus-client==0.19.0"
        f" cryptography==41.0.7 urllib3==2.0.7 {TEST_TOOLS}",
        python="3.12",
    ),
}
# What `make test` and `make support` run in.
TESTED = ("newest", "oldest", "debian12", "debian13", "debian11")
SUPPORTED = ("debian11", "ubuntu2204", "ubuntu2404")
# Those of `make test` in which all runs that libraries or iptables may differ in.
EVERYWHERE = TESTED[:-1]
TOGETHER = {"all": TESTED, "support": SUPPORTED}

# Has apt take iptables from another release, and nothing else.
IPTABLES_OF = """
sed 's/ {recipe.release} / {recipe.iptables} /' /etc/apt/sources.list \
>/etc/apt/sources.list.d/iptables.list
cat >/etc/apt/preferences.d/iptables <<END
Package: *
Pin: release n={recipe.iptables}
Pin-Priority: -1

Package: iptables libip4tc2 libip6tc2 libxtables12
Pin: release n={recipe.iptables}
Pin-Priority: 1001
END
"""

# Run last of all in a new environment: its presence says that the environment is whole.
WRITE_VERSIONS = """
import json, platform, subprocess
from importlib.metadata import version

versions = {"Python": platform.python_version()}
versions["iptables"] = subprocess.check_output(["iptables", "--version"], text=True).split()[1][1:]
versions.update((name, version(name)) for name in ("kubernetes", "sh", "PyYAML"))
with open("/versions.json", "w") as file:
    json.dump(versions, file)
"""

# The closing line of pytest, with and without -q.
PYTEST_SUMMARY = re.compile(r"(=+ )?(\d+ [a-z]+(, )?|no tests ran)+ in [\d.]+s.*")

# The repository is read-only, so what tools like to store beside the sources goes elsewhere.
KEPT_OUT_OF_THE_REPOSITORY = {
    "PYTHONPYCACHEPREFIX": "/tmp/pycache",
    "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
    "MYPY_CACHE_DIR": "/tmp/mypy",
    "RUFF_CACHE_DIR": "/tmp/ruff",
}


class NotMade(Exception):
    """An environment could not be made; the message says why."""


@dataclass
class Result:
    name: str
    status: int = NOT_MADE
    seconds: float = 0.0
    tests: str = "-"
    versions: Mapping[str, str] = field(default_factory=dict)


def steps(recipe: Recipe) -> list[str]:
    """The shell scripts that make the environment out of a bare Debian."""
    scripts = [apt(recipe.apt)]
    if recipe.iptables:
        scripts.insert(0, IPTABLES_OF.format(recipe=recipe))
    python = "$(ls /usr/bin/python3.* | grep -x '.*/python3[.][0-9]*' | sort -V | tail -n 1)"
    if recipe.python:
        python = f"/opt/python/bin/python{recipe.python}"
        scripts.append("echo /opt/python/lib >/etc/ld.so.conf.d/python.conf && ldconfig")
    if recipe.pip:
        pip = "/venv/bin/pip install --no-cache-dir --upgrade"
        install = f"{pip} {recipe.pip}"
        if recipe.builders:
            install = f"{pip} {recipe.builders} && {pip} --no-build-isolation {recipe.pip}"
        scripts.append(f"{python} -m venv {recipe.venv}/venv && {pip} pip && {install}")
    return [*scripts, f"python3 -c '{WRITE_VERSIONS}'"]


def pyenv(minor: str) -> Path:
    """Where the host has this Python."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = sorted(versions.glob(f"{minor}.*"))
    if not found:
        raise NotMade(f"{versions} has no Python {minor} (pyenv install {minor})")
    return found[-1]


def location(name: str) -> Path:
    """Where an environment made by today's recipe is."""
    named = re.findall(r"-r (\S+)", RECIPES[name].pip)
    required = [(REPOSITORY / file).read_text() for file in named]
    recipe = repr((RECIPES[name].release, steps(RECIPES[name]), required))
    return CACHE / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


async def make(name: str, root: Path) -> None:
    """Makes an environment beside its place, and moves it there when it is whole."""
    recipe = RECIPES[name]
    part = root.with_name(f"{root.name}.part")
    for abandoned in CACHE.glob(f"{name}-*.part"):
        shutil.rmtree(abandoned)
    log = CACHE / f"{name}.build.log"
    try:
        if recipe.python:
            # Before the bootstrap, which takes what is already there as it is.
            shutil.copytree(pyenv(recipe.python), part / "opt/python", symlinks=True)
        with log.open("wb") as output:
            failed = await bootstrap(recipe.release, part, steps(recipe), output)
        if failed:
            raise NotMade(f"cannot make the environment {name}; the end of {log}:\n{tail(log)}")
        for old in CACHE.glob(f"{name}-*"):
            if old != part:
                # Renamed first, so that one removed by half is never taken for a whole one.
                shutil.rmtree(old.rename(f"{old}.old.part"))
        part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)


async def obtain(name: str, keep: bool, lock: IO[str], say: Say) -> Path:
    """The environment, made if need be; it is neither replaced nor removed while `lock` is open."""
    root = location(name)

    def usable() -> bool:
        with suppress(FileNotFoundError):
            made = (root / "versions.json").stat().st_mtime
            return keep or time.time() - made < MAX_AGE_DAYS * 86400
        return False

    while True:
        await hold(lock, fcntl.LOCK_SH, say, f"{name}: waiting until another run has made it")
        if usable():
            return root
        await hold(lock, fcntl.LOCK_EX, say, f"{name}: waiting until other runs in it end")
        if not usable():
            say(f"{name}: being built, see {CACHE / name}.build.log")
            started = time.monotonic()
            await make(name, root)
            say(f"{name}: built in {time.monotonic() - started:.0f} s")


async def run(
    name: str, command: Sequence[str], keep: bool, say: Say, output: IO[bytes] | None = None
) -> Result:
    """Runs the command, if there is one, in one environment."""
    with (CACHE / f"{name}.lock").open("w") as lock:
        root = await obtain(name, keep, lock, say)
        result = Result(name, 0, versions=json.loads((root / "versions.json").read_text()))
        if command:
            variables = {
                **passed_on("TERM", "CI", "PYTEST_ADDOPTS", "IPVS_NODE_AGENT_.*"),
                **KEPT_OUT_OF_THE_REPOSITORY,
                "IPVS_NODE_AGENT_ENVIRONMENT": name,
            }
            started = time.monotonic()
            arguments = inside(root, "discard", variables, command)
            result.status = await isolated(arguments, output, network=False)
            result.seconds = time.monotonic() - started
        return result


async def run_all(names: Sequence[str], command: Sequence[str], keep: bool, say: Say) -> int:
    """Runs the command in these environments and ends with a table; 0 when all succeeded."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> Result:
        async with slots:
            log = CACHE / f"{name}.log"
            log.unlink(missing_ok=True)  # Another run that still writes to the old one keeps it.
            say(f"{name}: starts, see {log}")
            with log.open("w+b") as output:
                try:
                    result = await run(name, command, keep, say, output)
                except NotMade as error:
                    say(f"{name}: {error}")
                    return Result(name)
                output.seek(0)
                lines = output.read().decode(errors="replace").splitlines()
            if result.status:
                say("\n".join([f"{name}: the end of {log}:", *lines[-40:]]))
            say(f"{name}: ended with exit status {result.status} after {result.seconds:.0f} s")
            summaries = [line for line in lines if PYTEST_SUMMARY.fullmatch(line)]
            if summaries:
                say(summaries[-1])
                result.tests = re.sub(r"=+ | in .*", "", summaries[-1])
            return result

    results = await asyncio.gather(*(one(name) for name in names))
    packages = ["Python", "iptables", "kubernetes", "sh", "PyYAML"]
    rows = [["environment", *packages, "tests", "exit status", "seconds"]]
    for result in results:
        versions = [result.versions.get(package, "-") for package in packages]
        ended = [result.tests, str(result.status), f"{result.seconds:.0f}"]
        rows.append([result.name, *versions, *ended])
    print_table(rows)
    return int(any(result.status for result in results))


def print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def prepare_host() -> None:
    if os.geteuid() != 0:
        sys.exit("error: chroots and namespaces need root; run this as root or with sudo")
    CACHE.mkdir(parents=True, exist_ok=True)
    need_debootstrap()


async def until_signalled(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Does what the command line asks for; a signal ends it in order."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    if options.name in TOGETHER:
        names = TOGETHER[options.name]
        return await run_all(names, command, options.keep, lambda line: print(line, flush=True))

    def say(line: str) -> None:
        print(line, file=sys.stderr)  # The standard output is left to the command.

    try:
        return (await run(options.name, command, options.keep, say)).status
    except NotMade as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_MADE


def main() -> int:
    parser = argparse.ArgumentParser(
        "tests/environments/run", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--make-only", action="store_true", help="make what is missing, run nothing"
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"use environments older than {MAX_AGE_DAYS} days too"
    )
    parser.add_argument("name", choices=[*RECIPES, *TOGETHER], metavar="all|support|NAME")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="[--] COMMAND [ARG...]")
    options = parser.parse_args()
    command: list[str] = options.command
    if command[:1] == ["--"]:
        del command[0]
    if options.make_only == bool(command):
        parser.error("give either a command or --make-only before the name")
    prepare_host()
    try:
        return asyncio.run(until_signalled(options, command))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
