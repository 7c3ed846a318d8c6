"""All Services as one value: what differs between two of them, and what they share."""

from __future__ import annotations

import pytest

from ipvs_node_agent.apiserver.reading import read_service
from ipvs_node_agent.model.services import Services
from tests.support.agentnode import web


def many(count: int) -> Services:
    one = read_service(web("10.19.20.201"))
    return Services(one._replace(key=f"default/{number}") for number in range(count))


def test_another_value_shares_what_did_not_change() -> None:
    before = many(2000)
    after = before.with_changes({"default/7": None, "default/9": before["default/1"]})
    assert len(before) == 2000
    assert len(after) == 1999
    assert {*after.differing(before)} == {"default/7", "default/9"} == {*before.differing(after)}
    assert "default/7" not in after
    shared = sum(ours is theirs for ours, theirs in zip(before._shards, after._shards))
    assert shared >= len(before._shards) - 2


def test_values_that_share_what_they_have_are_equal_without_a_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = many(2000)
    after = before.with_changes({"default/7": None})
    same = after.with_changes({"default/7": before["default/7"]})
    monkeypatch.setattr(Services, "__getitem__", None)
    monkeypatch.setattr(Services, "__iter__", None)
    assert before == same
    assert before != after


def test_a_service_that_changes_shares_what_it_keeps() -> None:
    old, new = (read_service(web(ip)) for ip in ("10.19.20.201", "10.19.20.202"))
    made = Services([old]).with_changes({new.key: new})[new.key]
    assert made == new
    differing = [name for name in new._fields if getattr(made, name) is not getattr(old, name)]
    assert differing == ["load_balancer_ips"]


def test_a_list_keeps_the_very_objects_that_it_has_again() -> None:
    before = many(100)
    again = [service._replace() for service in before.values()]
    assert before.listed(again) is before
    fewer = before.listed(again[1:])
    assert {*fewer.differing(before)} == {again[0].key}
