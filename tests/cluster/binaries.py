"""kube-apiserver, kube-proxy and etcd for the tests: where they are, and how they get there.

`obtain` gives a folder with all three. Where KUBEBUILDER_ASSETS is set, as in Kubernetes' own
tests, that is it. Else Kubernetes is built from the Go modules pinned below `kubernetes/`, once,
into a cache in the user's home. etcd is taken out of Debian's package, except for the newest
version: Debian 12's is too old for streaming lists, so there it is built as well. The newest
version can be built for another processor, too.

    python3 -m tests.cluster.binaries                     # builds both, prints their folders
    python3 -m tests.cluster.binaries newest              # prints the folder
    python3 -m tests.cluster.binaries pin newest v1.37.2  # writes kubernetes/newest anew
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from tests.support.cache import NotMade, cache, made_once

# The newest and the oldest minor version that one Go toolchain builds.
NAMES = ("newest", "oldest")
PINNED = Path(__file__).resolve().parent / "kubernetes"
_KUBERNETES = ("k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kube-proxy")
_ETCD = "go.etcd.io/etcd/server/v3"
_PROGRAMS = ("kube-apiserver", "kube-proxy", "etcd")
CACHE = cache("kubernetes")


def obtain(name: str, foreign: str = "") -> Path:
    """The folder with the programs of the `newest` or `oldest` version. Raises NotMade.

    They are for this machine's processor, or for a `foreign` one, by Go's name.
    """
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given and not foreign:
        folder = Path(given)
    else:
        folder = CACHE / "-".join(filter(None, (version(name), foreign)))
        made_once(folder, lambda part, log: _make(name, part, log, foreign))
    for program in _PROGRAMS:
        if not os.access(folder / program, os.X_OK):
            raise NotMade(f"{folder} has no {program}")
    return folder


def version(name: str) -> str:
    """The pinned version, such as v1.37.2."""
    found = re.search(r"\bk8s\.io/kubernetes (v[\d.]+\d)", (PINNED / name / "go.mod").read_text())
    if found is None:
        raise NotMade(f"{PINNED / name / 'go.mod'} pins no k8s.io/kubernetes")
    return found[1]


def _make(name: str, part: Path, output: IO[bytes], foreign: str) -> None:
    pinned = PINNED / name

    def call(*command: str | Path, cwd: Path = part) -> None:
        environment = {**os.environ, "CGO_ENABLED": "0"}
        if foreign:
            environment["GOARCH"] = foreign
        subprocess.run(command, cwd=cwd, env=environment, stdout=output, stderr=output, check=True)

    build = _build(version(name))
    call(*build, "-o", f"{part}/", *_KUBERNETES, cwd=pinned)
    if _ETCD in (pinned / "go.mod").read_text():
        call(*build, "-o", part / "etcd", _ETCD, cwd=pinned)
        return
    if foreign:
        raise NotMade(f"etcd of {foreign} is built with the newest version alone")
    # Not installed: its package would start a server on this machine.
    if os.geteuid() == 0:
        call("apt-get", "update", "-q")
    call("apt-get", "download", "-q", "etcd-server")
    (package,) = part.glob("etcd-server_*.deb")
    call("dpkg-deb", "-x", package, "unpacked")
    (part / "unpacked/usr/bin/etcd").rename(part / "etcd")
    shutil.rmtree(part / "unpacked")
    package.unlink()


def _build(stamp: str) -> list[str]:
    """The command line of a small build that knows its version."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise NotMade("Kubernetes is built with Go, and there is no go command")
    # Without these, /version and the user agents say v0.0.0.
    values = {
        "k8s.io/component-base/version.gitVersion": stamp,
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": stamp.split(".")[1],
        "k8s.io/client-go/pkg/version.gitVersion": stamp,
    }
    flags = " ".join(["-s", "-w", *(f"-X {key}={value}" for key, value in values.items())])
    return [go, "build", "-trimpath", "-ldflags", flags]


def pin(name: str, wanted: str) -> None:
    """Writes kubernetes/NAME for another version; asks the Go module proxy for what it needs."""
    folder = PINNED / name
    folder.mkdir(parents=True, exist_ok=True)
    module = f"k8s.io/kubernetes@{wanted}"
    done = subprocess.run(
        ["go", "mod", "download", "-json", module], check=True, stdout=subprocess.PIPE, text=True
    )
    found = re.search(r'"GoMod": "(.+)"', done.stdout)
    if found is None:
        raise NotMade(f"the Go module proxy has no {module}")
    theirs = Path(found[1]).read_text()
    # Kubernetes' own parts, beside it in its repository, and published as v0.x modules.
    parts = sorted(set(re.findall(r"(?m)^\s*(\S+) => \./staging/", theirs)))
    staging = wanted.replace("v1.", "v0.", 1)
    tools = [*_KUBERNETES, *([_ETCD] if name == "newest" else [])]
    lines = [
        f"module ipvs-node-agent/tests/cluster/{name}",
        *re.findall(r"(?m)^(?:go|godebug) .+$", theirs),
        "tool (",
        *(f"\t{tool}" for tool in tools),
        ")",
        f"require k8s.io/kubernetes {wanted}",
        "replace (",
        *(f"\t{part} => {part} {staging}" for part in parts),
        ")",
    ]
    (folder / "go.mod").write_text("\n".join(lines) + "\n")
    (folder / "go.sum").unlink(missing_ok=True)
    subprocess.run(["go", "mod", "tidy"], cwd=folder, check=True)


def main(arguments: Sequence[str]) -> None:
    """Prints the folder of each named version, or pins one."""
    if arguments[:1] == ["pin"]:
        pin(*arguments[1:])
        return
    # Side by side: what they share, Go builds once, and it links with one processor.
    with ThreadPoolExecutor() as pool:
        for folder in pool.map(obtain, arguments or NAMES):
            print(folder)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except NotMade as error:
        sys.exit(f"error: {error}")
