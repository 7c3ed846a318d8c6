"""The kernel's structures for legacy tables, as the installed agent reads them."""

from __future__ import annotations

import pytest

from tests.node.scene import VERSIONS, Scene


@pytest.mark.quick
@pytest.mark.parametrize("version", VERSIONS)
def test_the_agent_reads_of_a_legacy_table_what_iptables_save_says(
    scene: Scene, version: int
) -> None:
    inside = f"ip link set lo up && python3 -B /bed/structures.py {version}"
    said = scene.machine.run(f"unshare --net sh -c '{inside}'")
    print(said)
    assert f"IPv{version}: 17 entries, 6 changes" in said
