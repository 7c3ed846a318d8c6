"""The API server: from a kubeconfig and bytes on a connection to Services and Nodes as values.

A `Follower` lists a resource once, watches it from there, and repeats what broke; it tells events
(`model.events`) and nothing else. Credentials are read again as they change, by a process of
their own, since the kubernetes package may run whatever the kubeconfig names.

In the order of the work: `kubeconfig` says who the user is and `credentials` makes connections of
that, over which `client` makes requests. `bodies` takes their answers apart, and `reading` makes
values of what is in them. `resources` says what is asked for, `outcome` what follows from how an
attempt ends.

Everything that arrives is hostile: names, sizes, depth, encodings, redirects, and how slowly it
comes. What cannot be read becomes a `Problem` or a `Skipped` event of the one object, never an
error that holds up the others.

Whether a Service gets rules is not decided here. No table, no rule and no chain is known here.
"""
