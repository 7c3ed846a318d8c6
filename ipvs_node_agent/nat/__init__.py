"""One family's nat or filter table as values: chain names, what is wanted, found, and differs.

Rules are text, in the very form in which iptables-save prints them: two rules are equal where
their texts are. So a table read from the kernel and a table that is wanted can be compared chain
by chain, and the difference is one input for iptables-restore, which applies it whole or not at
all.

The goals, and where they pull against each other:

- What is not ours is never touched. Ownership goes by the chain's name alone, and by the target
  of a jump in a built-in chain.
- One change is one input, however many chains it touches. A chain that stays as it is keeps its
  counters, so an input names only chains that differ.
- Whoever changed our chains is told apart by what is found (drift), not by asking who it was.

What the rules *mean* is not known here (`rules`), and no command is run here (`iptables`). Pure:
no clock, no thread, no file.
"""
