"""Why an external IP works from this node, or does not.

What is wanted is not known here (`rules`), and nothing is changed.

How it looks on a terminal is not known here either (`commands`).
"""
