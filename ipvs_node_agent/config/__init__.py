"""The configuration file: from its bytes to a `Config`, or one sentence with file, line and key.

A file is taken whole or not at all: the first thing that is wrong with it raises, and whoever had
a configuration before goes on with that. A key has its default, its reader and its documentation
in one place each, so that a new key is three small changes and a test finds the missing one.

Here also is what every file from outside is read with: regular files of bounded size, and YAML of
bounded depth and without surprises. What a setting does is not known here.
"""
