"""Whether the API server is followed, as `status` and the log tell it: gone, silent, and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.kernel.conftest import WEB, Bed
from tests.support.agentprocess import altered
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.once("debian12"),
    pytest.mark.parametrize("backend", ["nft"]),
]

# Seconds in place of minutes.
HASTY = altered(
    {
        "apiserver.silence.ASKS": 1.5,
        "apiserver.silence.AGAIN": 1.0,
        "apiserver.silence.SILENT": 10.0,
        "observe.status.PATIENCE": 3.0,
    }
)
WARNING = "trying again; the rules stay as they are"


def told(bed: Bed) -> tuple[int, dict[str, Any]]:
    done = bed.agent.call("status", "-o", "json")
    raw: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, raw


@pytest.mark.parametrize(
    ("leave", "come_back"),
    [
        pytest.param(lambda api: api.stop(), lambda api: api.start(), id="gone"),
        pytest.param(lambda api: api.hang(), lambda api: api.heal(), id="silent"),
    ],
)
def test_in_sync_is_said_only_of_what_is_known(
    leave: Callable[[Any], None], come_back: Callable[[Any], None], bed: Bed
) -> None:
    bed.agent.program = HASTY
    bed.put(WEB)
    bed.agent.start()
    bed.expect(WEB)
    status, raw = told(bed)
    assert (status, raw["following"], raw["notFollowingSince"]) == (0, True, None)
    leave(bed.api)
    eventually(lambda: not told(bed)[1]["following"], lambda: bed.agent.log, 30)
    _, raw = told(bed)
    assert raw["inSync"]
    assert raw["lastContact"] <= raw["notFollowingSince"]
    shown = bed.agent.call("status").stdout
    assert shown.startswith("In sync with what was known at 2")
    assert "; the API server cannot be reached since 2" in shown.splitlines()[0]
    assert "In sync with what was last known" in raw["sentence"]
    eventually(lambda: told(bed)[0] == 1, "an exit status that says so", 30)
    assert bed.agent.log.count(WARNING) == 1, bed.agent.log
    bed.expect(WEB)
    come_back(bed.api)
    eventually(lambda: told(bed)[0] == 0 and told(bed)[1]["following"], lambda: bed.agent.log, 60)
    assert bed.agent.call("status").stdout.startswith("In sync since 2")
    assert bed.agent.log.count("answers again") == 1


def test_a_server_that_has_nothing_to_say_is_asked_and_followed(bed: Bed) -> None:
    bed.agent.program = HASTY
    bed.agent.start()

    def asked() -> int:
        return sum(request.resource == "endpoints" for request in bed.api.requests)

    before = asked()
    eventually(lambda: asked() >= before + 4, lambda: bed.agent.log, 30)
    assert told(bed)[1]["following"]
    assert WARNING not in bed.agent.log
