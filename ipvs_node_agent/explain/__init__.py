"""Why an external IP works from this node, or does not: facts are gathered, then told and judged.

What a packet would meet is followed through the tables that the kernel has, whoever wrote them, and
not through those that are wanted: `gather` reads all of it once, changes nothing, and never raises
for what cannot be seen, which is left out and said.

All else is pure, and in the order of the packet's way: `target` is what was asked, `services` who
names the address, `walks` what becomes of a packet, `balancing` who takes it at the ClusterIP, and
`verdict` one sentence out of all of it. Each gives lines with their grounds, and causes: what by
itself has the address not work, or not be told. The first cause is the verdict.

How it looks on a terminal is not known here (`commands`).
"""
