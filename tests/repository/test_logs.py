"""All log lines are of one style, and each can be found in the source by its words."""

from __future__ import annotations

import re

import pytest

from tests.support.loglines import LogCall, log_calls

CALLS = log_calls()


def test_there_is_something_to_look_at_and_tracebacks_are_for_debug_alone() -> None:
    assert len(CALLS) > 30
    assert {call.level for call in CALLS} == {"debug", "info", "warning", "error"}
    assert {call.level for call in CALLS if call.traceback} == {"debug"}


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_line_is_one_sentence_without_a_capital_or_a_full_stop(call: LogCall) -> None:
    # An f-string's text would be looked for in vain, and be made for nothing on debug.
    assert call.literal
    if call.level != "debug":
        assert "\n" not in call.text
        assert not call.text.endswith((".", "!", ":", " "))
        # Kubernetes' kinds and proper names keep their capital.
        assert re.match(r"[a-z%]|Node |UDP ", call.text)
