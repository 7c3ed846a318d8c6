"""What one family's table is to hold, as far as anybody knows at the moment.

It is a function of one `Basis`, which never changes: whatever is learnt makes another one, and
`Wanted.reconcile` alone goes from one to the next. Nothing here is told to be made anew.
"""

from __future__ import annotations

import math

from ipvs_node_agent.config.settings import Config
from ipvs_node_agent.model.addresses import Family
from ipvs_node_agent.model.objects import Node, Problem
from ipvs_node_agent.model.services import Services
from ipvs_node_agent.nat.ruleset import Ruleset
from ipvs_node_agent.rules.planner import Basis, Planner, Replanner
from ipvs_node_agent.sync.refused import Refused

# Splitting chains that a change made too long waits for a quiet moment, but not for longer.
_SETTLE_AFTER = 1.0
# So many changes at once are a burst, which need not write as few chains as a single one.
_BURST = 8


class Wanted:
    """The ruleset that is wanted in one family's table; nothing before the first `reconcile`.

    The very same object stays as long as nothing else is wanted. `rules` is how many it has. What
    is learnt goes into `basis`, `refused`, `own_mark` and `behind`, and counts with the next
    `reconcile`.
    """

    def __init__(self, family: Family) -> None:
        self.ruleset = Ruleset()
        self.rules = 0
        self.basis = Basis(Config(), Node("", (), (), ()), Services())
        self.refused = Refused(family)
        # Whether others' tables lack Kubernetes' chain that marks.
        self.own_mark = False
        # Jumps of others that stand before ours, by built-in chain and target.
        self.behind = frozenset[tuple[str, str]]()
        self._replanner = Replanner(family, self.basis)
        self._problems: tuple[Problem, ...] = ()
        # Since when chains may be longer or shorter than they should be.
        self._loose_since = math.inf

    @property
    def planner(self) -> Planner:
        """Who has rules."""
        return self._replanner.planner

    @property
    def problems(self) -> frozenset[Problem]:
        """What was asked for and is refused, by us or by the kernel."""
        return self.refused.problems.union(self._problems)

    @property
    def due(self) -> float:
        """When chains are to be split or joined; `reconcile` does it."""
        return self._loose_since + _SETTLE_AFTER

    def reconcile(self, now: float) -> bool:
        """Makes the plan that follows from all that is known; False where there is none to make."""
        self.refused.keep(self.basis.services)
        basis = self.basis._replace(
            left_out=self.refused.left_out, own_mark=self.own_mark, behind=self.behind
        )
        self.basis, settling = basis, now >= self.due
        if self._replanner.is_for(basis) and not settling:
            return False
        changed, planner = self._replanner.become(basis), self.planner
        if changed >= _BURST or settling:
            planner.settle()
        self._loose_since = min(self._loose_since, now) if planner.loose else math.inf
        plan = planner.plan(basis.behind)
        self._problems = plan.problems
        if self.ruleset != plan.ruleset:
            self.ruleset, self.rules = plan.ruleset, sum(map(len, plan.ruleset.chains.values()))
        return True
