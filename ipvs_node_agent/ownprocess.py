"""The command line that runs a module of this package in a process of its own."""

from __future__ import annotations

import json
import sys

# Isolated, so that neither variables nor the working directory bring in other code than ours.
_PROGRAM = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    f" importlib.import_module('{__package__}.' + sys.argv[2]).main(*sys.argv[3:])"
)


def command(module: str, *arguments: str) -> list[str]:
    """Calls `main` of the module with `arguments`; code is found where this process finds it."""
    # A package that is being removed must not leave bytecode; isolated, a variable cannot say so.
    options = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]
    return [sys.executable, *options, "-c", _PROGRAM, json.dumps(sys.path), module, *arguments]
