"""What commands print, made up."""

from __future__ import annotations

import pytest

from ipvs_node_agent.iptables import command

EMPTY = "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the commands print, one after the other; the last one again and again."""
    texts = [EMPTY]

    class Ended:
        name = "iptables-save"

        def result(self) -> str:
            return texts.pop(0) if len(texts) > 1 else texts[0]

    monkeypatch.setattr(command, "start", lambda *_, **__: Ended())
    return texts
