"""Whose network namespace has the other end of an interface, the kernel says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipvs_node_agent.host import podspaces
from ipvs_node_agent.host.podspaces import ends
from tests.support.netns import Namespace, link, namespaces

pytestmark = [pytest.mark.kernel, pytest.mark.once("debian12")]


@pytest.fixture
def spaces() -> Iterator[tuple[Namespace, ...]]:
    """A node, a pod at its bridge, another one beside it, and one that has no cable to it."""
    with namespaces("node", "pod", "other", "stranger") as made:
        node, pod, other, stranger = made
        link(node, pod, "veth1", "eth0")
        link(node, other, "cali2", "eth0")
        link(other, stranger, "cali3", "eth0")
        # Neither end is in another namespace; and a pair's other end is not one that was moved.
        node.run("ip", "link", "add", "here1", "type", "veth", "peer", "name", "here2")
        stranger.run("ip", "link", "add", "tunnel", "type", "vxlan", "id", "7", "dstport", "4789")
        stranger.run("ip", "link", "set", "tunnel", "netns", node.name)
        node.run("ip", "link", "add", "cni0", "up", "type", "bridge")
        node.run("ip", "link", "set", "veth1", "master", "cni0")
        yield made


def found(node: Namespace, wanted: set[int], most: int = 9) -> list[int]:
    """The inodes of what is opened, sorted."""
    with node.enter(), podspaces.opened(wanted, most) as descriptors:
        return sorted(os.fstat(each).st_ino for each in descriptors)


def test_they_are_told_by_the_interfaces(spaces: tuple[Namespace, ...]) -> None:
    node, pod, other, _ = spaces
    with node.enter():
        known = {each.name: each for each in ends()}
    assert {(end.name, end.bridge) for end in known.values()} == {("veth1", "cni0"), ("cali2", "")}
    inodes = {each: os.stat(each.path).st_ino for each in spaces}
    numbers = {known["veth1"].space: pod, known["cali2"].space: other}
    for number, whose in numbers.items():
        assert found(node, {number}) == [inodes[whose]]
    assert found(node, set(numbers)) == sorted([inodes[pod], inodes[other]])
    assert len(found(node, set(numbers), most=1)) == 1
    assert found(node, set()) == []


def test_a_process_is_as_good_as_a_file(spaces: tuple[Namespace, ...]) -> None:
    node, pod, *_ = spaces
    inode = os.stat(pod.path).st_ino
    with node.enter():
        (space,) = (each.space for each in ends() if each.name == "veth1")
    processes = [pod.popen(["sleep", "60"]) for _ in range(2)]
    subprocess.run(["umount", pod.path], check=True)
    try:
        assert found(node, {space}) == [inode]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert found(node, {space}) == []
    # `ip netns delete` is to have something to unmount.
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", pod.path], check=True)


def test_what_is_no_network_namespace_is_passed_over(
    spaces: tuple[Namespace, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, pod, *_ = spaces
    (tmp_path / "file").write_text("no namespace")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("/nowhere")
    (tmp_path / "user").symlink_to("/proc/self/ns/user")
    os.mkfifo(tmp_path / "fifo")
    for name in ("pod", "the same"):
        (tmp_path / name).symlink_to(pod.path)
    monkeypatch.setattr(podspaces, "_KEPT", (tmp_path / "absent", tmp_path))
    before = os.listdir("/proc/self/fd")
    with node.enter():
        wanted = {each.space for each in ends() if each.name == "veth1"}
    assert found(node, wanted) == [os.stat(pod.path).st_ino]
    assert found(node, {-1}) == []
    assert os.listdir("/proc/self/fd") == before
