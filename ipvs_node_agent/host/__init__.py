"""The node around the agent: systemd, /run, /proc, and kube-proxy.

Each module is one neighbour and the little that the agent has to say to it or ask of it. What
they answer is hostile where another user of the node could have made it up, so each says whom it
believes.

The kernel's tables are not here (`iptables`), nor are the API server (`apiserver`) and processes of
our own (`processes`). Nothing here decides: what follows from an answer is the business of `sync`
and of `check`.
"""
