"""An experienced operator's look at a node: facts are gathered, then judged.

Gathering touches the outside, each look with a time limit, and changes nothing; what cannot be
seen is left out, and nothing is raised. Judging is pure: facts in, findings out. A finding is a
level, one sentence about what was found, and the least that mends it.

What findings look like on a terminal is the command's business (`commands`).
"""
