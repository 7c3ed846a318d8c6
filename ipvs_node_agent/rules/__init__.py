"""From Services to the chains that are wanted; the packet's walk through them.

For a connection to an external IP of a Service:

1. From a pod with a network namespace of its own it enters the node by nat PREROUTING; from the
   host, or a pod on the host's network, it starts in nat OUTPUT. Our jump is the first rule
   there, since kube-proxy's KUBE-SERVICES behind it accepts the packet and ends the walk.
2. Our chain, or the one of its tree that the destination leads to (`dispatch`), finds the
   external IP (and the pod CIDR as the source, or a local source address), has KUBE-MARK-MASQ
   mark the packet, and changes its destination to the Service's ClusterIP.
3. IPVS hooks in after both (LOCAL_IN after PREROUTING, LOCAL_OUT after OUTPUT) and knows the
   ClusterIP with all of its endpoints, whatever externalTrafficPolicy says.
4. In nat POSTROUTING, KUBE-POSTROUTING gives a marked packet the node's address as its source.
   The host's packets need that: the external IP is bound to kube-ipvs0, so the kernel chose it as
   the source as well, and the answer would never come back.

In the order of the work: `policy` says which addresses count, `claims` who has one, `render`
which rules that gives, `dispatch` in which chain they stand, and `planner` keeps the sum up to
date.

Everything is a function of the configuration and the cluster, both values. What the kernel holds
is not known here (`nat` compares, `iptables` asks, `sync` decides when); nothing is logged or
waited for.
"""
