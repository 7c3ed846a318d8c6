"""The commands of `ipvs-node-agent`, a file each.

A command reads its arguments, gathers what it needs from the packages below, and prints. What is
worth a test without a terminal, a node or an API server does not belong here, but in the package
that it is about. Commands know nothing of each other but `output`; `check` alone uses `diff`'s
difference.
"""
