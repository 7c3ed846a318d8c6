"""Processes of our own: a Python that does one thing apart, and the one that starts commands.

A process is set apart where it could hang, take memory that is not given back, or has to be in
another namespace (`isolated`); and for commands, since to fork the agent takes longer than most of
them (`launcher`).

What a command means is not known here (`iptables`), nor what is done apart: each module here is
only how. Whatever was started ends with the agent, however that ends.
"""
