"""The kernel's nat and filter tables, through `sh`; nothing else knows the commands of iptables.

A `Table` is the seam: `save`, `restore`, and whether somebody else changed it meanwhile. On it
stands the `Programmer`, which keeps one table as it is wanted.

The goals, and where they pull against each other:

- A write is one input, applied whole or not at all.
- What the kernel holds is known, not assumed: a table is read when somebody may have changed it.
  To read one of 40,000 rules costs up to half a second, so asking whether it changed has to cost
  nothing: nft tells of each change, and a legacy table has a digest. Where nft tells of few chains,
  these alone are read.
- A command may hang, be killed, be refused the lock, or lie with its exit status. Each is a
  `TableError` that says which it was; nobody reads its text.
- Both backends and both families behave alike, or the difference has a name here.

Which rules are wanted is not known here (`rules`), nor when to write (`sync`). One thread uses a
table.
"""
