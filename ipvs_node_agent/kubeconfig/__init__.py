"""From a kubeconfig to credentials: where the API server is, and as whom it is asked.

A kubeconfig may name files, programs and proxies, and the `kubernetes` package follows all of them.
So it is read in a process of its own (`reader`), out of bytes that were read within bounds before
(`contents`), and what comes back is checked here: hosts and URLs have one reading (`urls`), and
certificate and key become one TLS context, whole or not at all (`credentials`).

No request is made here (`apiserver`). No key reaches a file, an argument or the log.
"""
