"""The commands of `ipvs-node-agent`, a file each.

`main` of each takes the parsed arguments, gathers what it needs from the packages below, prints,
and gives the exit status; what goes wrong is raised as an `AgentError`. What is worth a test
without a terminal, a node or an API server does not belong here, but in the package that it is
about.

Commands know nothing of each other but `output`; `check` and `explain` alone use what `diff` sees.
"""
