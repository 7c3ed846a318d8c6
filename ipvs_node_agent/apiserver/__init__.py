"""The API server: from requests and bytes on a connection to Services and Nodes as values.

A `Follower` lists a resource once, watches it from there, and repeats what broke; it tells events
(`model.events`) and nothing else.

In the order of the work: `client` makes requests with the credentials of the moment (`kubeconfig`).
`bodies` takes their answers apart, and `reading` makes values of what is in them. `resources` says
what is asked for, `outcome` what follows from how an attempt ends.

Everything that arrives is hostile: names, sizes, depth, encodings, redirects, and how slowly it
comes. What cannot be read becomes a `Problem` or a `Skipped` event of the one object, never an
error that holds up the others.

Whether a Service gets rules is not decided here. No table, no rule and no chain is known here.
"""
