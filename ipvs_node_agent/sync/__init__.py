"""The mind: what has been told, what is wanted, and what is due when.

Events go in, and writes come out. All that the rules depend on is one immutable value (`inputs`);
what is planned from is always one such value, whole. There is no second copy of a truth here, and
no flag that says "make it anew": a table is behind where the plan that it holds is not the wanted
one.

The clock is handed in, and so are the tables; no thread is started and no socket opened here. So
a simulation can play years of events, faults and moments against it (tests/simulation).

In the order of the work: `cluster` is what was told, `agent` says what is due, `wanted` plans for
one family, `kept` writes a table and tries again (`family` its nat table, `invalid` its filter
table), `refused` knows whom the kernel refuses, `repairs` how often others are in the way,
`progress` how far a table is behind, and `log` says it.

One thread uses all of this. What other threads may know, they read from `state`: values that are
replaced, never changed.
"""
