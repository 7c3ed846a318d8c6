"""The cluster as values: addresses, Services, the Node, and what is told of them.

Everything that the agent decides about is one of these values. They are made once, at the edge,
out of what the API server sent, and never change; so they can be compared, hashed, kept and
handed from one thread to another without a lock.

Here belongs what a Service or a Node *is*. What is wanted for it does not (`rules`), nor what its
bytes look like (`apiserver`), nor anything that knows iptables (`nat`, `iptables`). Nothing here
reads, writes, logs, waits or asks for the time.
"""
