"""A configuration as text: nothing is lost in it, and nothing in it does harm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipvs_node_agent.config.file import Loaded, parse, values
from ipvs_node_agent.config.settings import DEFAULTS, Chains, Config
from ipvs_node_agent.config.shown import changes, in_effect
from tests.support.configs import EVERY_KEY, EVERY_VALUE

PATHS = ("/a b", "/a: b # c", "/'", '/"\\\\', "/é\U0001f600", "/[x]", "/{y}", "/a, b", "/&a *b")
PERIODS = (0.1, 0.123456789, 1.0, 10.0, 90.05, 3600.0)


@pytest.mark.parametrize(
    "config",
    [
        DEFAULTS,
        EVERY_VALUE,
        *(replace(DEFAULTS, kubeconfig=path) for path in PATHS),
        *(replace(DEFAULTS, drift_check_period=period) for period in PERIODS),
        *(replace(DEFAULTS, node_name=name) for name in ("null", "true", "1e3", "0x1f", "1", "n")),
        replace(DEFAULTS, metrics_bind_address=""),
        replace(DEFAULTS, pod_cidrs=(), pod_interfaces=()),
        replace(DEFAULTS, chains=replace(Chains(), prerouting="NULL", output="1_0")),
    ],
)
def test_what_is_shown_is_read_back_as_it_was(config: Config) -> None:
    text = in_effect(Loaded(config, "/x"))
    assert parse(text, "shown") == config
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_each_key_says_whether_the_file_has_it() -> None:
    given = frozenset({"kind", "masquerade", "chains.output"})
    lines = in_effect(Loaded(EVERY_VALUE, "/x", given)).splitlines()
    assert lines[0] == "# /x"
    origins = {line.split(":")[0].strip(): line.rpartition("  # ")[2] for line in lines[1:]}
    from_file = {key for key, origin in origins.items() if origin == "from the file"}
    assert from_file == {"kind", "masquerade", "output"}
    others = {key for key, origin in origins.items() if origin == "default"}
    sections = {"chains", "services", "iptables"}
    assert others == {key.split(":")[0].strip() for key in EVERY_KEY.splitlines()} - from_file - (
        sections
    )


def test_a_file_that_is_not_there_is_said_to_be_missing() -> None:
    first, *_ = in_effect(Loaded(DEFAULTS, "/x\n\x1b[2J", None)).splitlines()
    assert first == "# /x\\n\\x1b[2J is not there: these are the defaults"


@pytest.mark.parametrize("key", list(values(DEFAULTS)))
def test_the_change_of_a_key_is_told_with_both_values(key: str) -> None:
    section, _, last = key.rpartition(".")
    (line,) = [each for each in EVERY_KEY.splitlines() if each.strip().startswith(f"{last}:")]
    one = parse(f"{section}:\n{line}\n" if section else line, "one key")
    (said,) = changes(DEFAULTS, one)
    (back,) = changes(one, DEFAULTS)
    _, was, now = said.replace(" was ", "\n", 1).replace(" and is ", "\n", 1).split("\n")
    assert said.startswith(f"{key} was ")
    assert back == f"{key} was {now} and is {was}"
    assert was != now


def test_what_is_the_same_is_not_told() -> None:
    assert list(changes(EVERY_VALUE, parse(EVERY_KEY, "again"))) == []


def test_a_long_value_is_cut() -> None:
    config = replace(DEFAULTS, pod_interfaces=("cali+",) * 10_000, kubeconfig="/\u2028x")
    assert all(len(line) < 1200 and line.isprintable() for line in changes(DEFAULTS, config))
