"""The kubelet rotates the node's certificate, and the agent goes on with the new one at once."""

from __future__ import annotations

import os
import random
import time
from datetime import timedelta

import pytest

from tests.cluster.bed import Worker, add_service, set_external_ips
from tests.cluster.rest import Client
from tests.support.waiting import eventually

LIFETIME = 120.0
# Ten minutes; CI gives fewer.
MINUTES = float(os.environ.get("IPVS_NODE_AGENT_ROTATION_MINUTES", "10"))
# A rotation is noticed within a second and read by a process that takes half a second, several
# where the machine has more to do; changes do not wait for that.
FOLLOWED = 15.0


class Changes:
    """Changes one Service again and again, and measures how long the kernel takes to know."""

    def __init__(self, node: Worker, admin: Client) -> None:
        self._node, self._admin = node, admin
        self._number = 0
        _, self.name, self._cluster_ip = add_service(admin, "web", "10.19.0.0")
        self.latencies: list[float] = []

    def next(self) -> None:
        """One change, waited for."""
        self._number += 1
        address = f"10.19.{self._number >> 8}.{self._number & 255}"
        started = time.monotonic()
        set_external_ips(self._admin, self.name, address)
        self._node.holds((address, self.name, self._cluster_ip))
        self.latencies.append(time.monotonic() - started)


def followed(node: Worker, before: set[str], credential: str) -> None:
    """Waits until no connection is left from before, and both watches show this certificate."""
    eventually(
        lambda: not before & node.connections().keys() and shown(node) == [credential] * 2,
        f"nothing but {credential} in use\n{node.agent.log}",
        timeout=FOLLOWED,
    )


def shown(node: Worker) -> list[str]:
    """The certificates of the open watches, by the server's audit log."""
    entries = node.server.asked(node.name)
    ended = {entry.id for entry in entries if entry.stage == "ResponseComplete"}
    return [entry.credential for entry in entries if entry.id not in ended]


@pytest.mark.xdist_group("rotation")
def test_changes_arrive_through_all_rotations_and_no_old_certificate_stays_in_use(
    node: Worker, admin: Client
) -> None:
    end = time.monotonic() + MINUTES * 60
    node.certificate.rotate(timedelta(seconds=LIFETIME))
    changes = Changes(node, admin)
    node.agent.start()
    rotations = 0
    while time.monotonic() < end:
        # The kubelet's moment: 70 to 90 % of the lifetime.
        due = time.monotonic() + LIFETIME * random.uniform(0.7, 0.9)
        while time.monotonic() < min(due, end):
            changes.next()
            time.sleep(2)
        before = set(node.connections())
        credential = node.certificate.rotate(timedelta(seconds=LIFETIME))
        rotations += 1
        changes.next()
        followed(node, before, credential)
    assert node.agent.running
    slowest = max(changes.latencies)
    print(f"{rotations} rotations, {len(changes.latencies)} changes, slowest {slowest:.2f} s")
    assert slowest < 2
    assert "WARNING" not in node.agent.log
    lists = [e for e in node.server.asked(node.name) if e.verb == "list"]
    assert len(lists) <= 2, "a rotation costs no list"


@pytest.mark.xdist_group("rotation")
def test_a_broken_file_is_reported_and_the_old_certificate_serves_until_the_next_one(
    node: Worker, admin: Client
) -> None:
    lifetime = 40.0
    old = node.certificate.rotate(timedelta(seconds=lifetime))
    expires = time.monotonic() + lifetime
    changes = Changes(node, admin)
    node.agent.start()
    node.certificate.break_off()
    node.agent.said("the credentials changed and cannot be read, going on: ")
    # A new connection, made with what is no longer there as a file.
    before = set(node.connections())
    node.cut()
    changes.next()
    followed(node, before, old)
    assert time.monotonic() < expires
    # Once it has expired, a new connection is refused, and the rules stay.
    time.sleep(expires - time.monotonic() + 1)
    rules = node.rules()
    node.cut()
    node.agent.said("401")
    assert node.rules() == rules
    assert node.agent.log.count("cannot be read, going on") == 1
    credential = node.certificate.rotate()
    changes.next()
    followed(node, set(), credential)
    assert node.agent.running
