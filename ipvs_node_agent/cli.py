"""The command line: its commands, and the one place where errors become text and status."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn, TextIO

from ipvs_node_agent import __version__
from ipvs_node_agent.commands.output import coloured_change, takes_colours
from ipvs_node_agent.commands.render import read_objects
from ipvs_node_agent.config.settings import Config, load
from ipvs_node_agent.errors import AgentError, RefusedError, UsageError, one_line
from ipvs_node_agent.host import journal
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family, Network, parse_network
from ipvs_node_agent.model.objects import (
    Node,
    Service,
    Snapshot,
    UnknownObject,
    read_node,
    read_service,
)
from ipvs_node_agent.nat.ruleset import Found, difference
from ipvs_node_agent.nat.saveformat import restore_input
from ipvs_node_agent.rules.planner import plan

PROGRAM = "ipvs-node-agent"

OK, PENDING, FAILED, INTERNAL_ERROR = 0, 1, 1, 70


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `arguments`, and gives the exit status."""
    _keep_closed_streams_closed()
    try:
        return _run_command(arguments)
    finally:
        # What cannot be written would be tried again, and change the exit status, at the end.
        _write(sys.stderr, "")


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        _set_up_logging(options.log_level)
        status: int = options.command(options)
        return status
    except AgentError as error:
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        return 130
    except MemoryError:
        return _fail("out of memory", RefusedError.exit_status)
    except Exception as error:  # A bug: it must look like one, and be no traceback.
        logging.getLogger(__name__).debug("internal error", exc_info=True)
        return _fail(
            f"internal error: {type(error).__name__}: {one_line(str(error))} (please report it,"
            f" with what {PROGRAM} --log-level debug shows)",
            INTERNAL_ERROR,
        )


def _keep_closed_streams_closed() -> None:
    """Gives standard streams that are closed a place where every use is an error.

    Otherwise what is opened next would take their place, and get what is meant for them.
    """
    for name, mode, useless in (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_RDONLY),
    ):
        if getattr(sys, name) is None:
            # It is the lowest number that is free.
            descriptor = os.open(os.devnull, useless)
            os.set_inheritable(descriptor, True)
            stream = open(descriptor, mode, encoding="utf-8")  # noqa: SIM115  (to the end)
            setattr(sys, name, stream)


def _print(text: str) -> None:
    """Prints `text` to the last character. Raises RefusedError where it cannot be written."""
    error = _write(sys.stdout, text)
    # Whoever read the output may have seen enough.
    if error is not None and not isinstance(error, BrokenPipeError):
        raise RefusedError("standard output", error.strerror or str(error))


def _write(stream: TextIO, text: str) -> OSError | None:
    """Writes `text` to the last character; where that fails, nothing is written there again."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        return error
    return None


def _fail(text: str, status: int) -> int:
    _complain(logging.ERROR, text)
    return status


def _note(text: str) -> None:
    _complain(logging.WARNING, one_line(text))


def _complain(level: int, text: str) -> None:
    # Without its level, the journal would take the reason of a failed start for a piece of news.
    sign = journal.sign(level) if journal.is_at(sys.stderr) else ""
    _write(sys.stderr, f"{sign}{PROGRAM}: {text}\n")


class _Parser(argparse.ArgumentParser):
    """Reports bad usage as every other error, and takes no option by half its name."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError("command line", message, f"see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        # Help and version: argparse would not say that they cannot be written.
        _print(message)


def _parser() -> argparse.ArgumentParser:
    # Taken before and after the command: where it is left out, the other place counts.
    common = _Parser(add_help=False)
    for parser, default in ((common, argparse.SUPPRESS), (main_parser := _Parser(PROGRAM), None)):
        parser.add_argument(
            "--config",
            metavar="FILE",
            type=Path,
            default=default,
            help="the configuration (default: /etc/ipvs-node-agent/config.yaml, where it exists)",
        )
        parser.add_argument(
            "--log-level",
            choices=("debug", "info", "warning", "error"),
            default=default or "info",
            help="how much to log (default: info)",
        )
    main_parser.description = "Makes external IPs of Services reachable from inside the cluster."
    main_parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = main_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text, parents=[common])
        parser.set_defaults(command=function)
        return parser

    command("run", _run, "watch the cluster and keep the rules, until SIGTERM or SIGINT")
    render = command("render", _render, "print the rules for Services in a file; needs no root")
    render.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        action="append",
        required=True,
        help="what kubectl get services -A -o yaml (or json) prints; - for standard input",
    )
    render.add_argument(
        "--family",
        type=_family,
        default=IPV4,
        metavar="{IPv4,IPv6}",
        help="the address family (default: IPv4)",
    )
    render.add_argument(
        "--pod-cidr",
        metavar="CIDR",
        type=_cidr,
        action="append",
        help="a pod CIDR of the node (may be repeated)",
    )
    render.add_argument(
        "--node", metavar="FILE", help="a Node object, for its pod CIDRs and addresses"
    )
    command("diff", _diff, "print what run would change now, without changing it")
    status = command("status", _status, "ask the running agent whether it is in sync")
    check = command("check", _check, "look at the set-up: what is wrong, and what mends it")
    for asked in (status, check):
        asked.add_argument(
            *("-o", "--output"),
            choices=("text", "json"),
            default="text",
            help="the form (default: text)",
        )
    command("cleanup", _cleanup, "remove every rule and chain that the agent ever made")
    return main_parser


def _family(text: str) -> Family:
    for family in FAMILIES:
        if text == family.name:
            return family
    raise argparse.ArgumentTypeError(f"wanted IPv4 or IPv6, got {text!r}")


def _cidr(text: str) -> Network:
    try:
        network = parse_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
    if network.prefixlen == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is every address, not this node's pods'")
    return network


class _LogHandler(logging.StreamHandler):  # type: ignore[type-arg]  # Python 3.9 takes none
    def handleError(self, record: logging.LogRecord) -> None:
        """Drops a line that cannot be written; to say so at length would be as much in vain."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _set_up_logging(level: str) -> None:
    handler = _LogHandler()
    if journal.is_at(sys.stderr):
        handler.setFormatter(journal.Formatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What the libraries below say is said again, better, by the errors raised here.
    for name in ("urllib3", "kubernetes", "sh"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _run(options: argparse.Namespace) -> int:
    from ipvs_node_agent.commands.run import run
    from ipvs_node_agent.host.systemd import ServiceManager

    run(options.config, ServiceManager(os.environ))
    return OK


def _render(options: argparse.Namespace) -> int:
    config = load(options.config)
    if options.pod_cidr is not None:
        config = _with_pod_cidrs(config, tuple(options.pod_cidr))
    if [options.node, *options.file].count("-") > 1:
        raise UsageError("render", "standard input is named twice", "it can be read only once")
    reading = _Reading()
    node = reading.node(options.node) if options.node else Node("", (), (), ())
    if config.pod_cidrs is None and not node.pod_cidrs:
        raise UsageError(
            "render", "no pod CIDR", "give --pod-cidr CIDR, --node FILE, or podCIDRs in --config"
        )
    services = reading.services(options.file)
    planned = plan(config, Snapshot(services, node), options.family)
    for problem in (*reading.problems(services, node), *planned.problems):
        _note(str(problem))
    _print(restore_input(difference(Found(), planned.ruleset)))
    return reading.status


def _with_pod_cidrs(config: Config, cidrs: Sequence[Network]) -> Config:
    from dataclasses import replace

    return replace(config, pod_cidrs=tuple(cidrs))


class _Reading:
    """Reads the files given to `render`; what is wrong in them is said, and the rest is used."""

    def __init__(self) -> None:
        self.status = OK

    def services(self, names: Sequence[str]) -> dict[str, Service]:
        found: dict[str, Service] = {}
        for name in names:
            for raw in self._objects(name):
                try:
                    service = read_service(raw)
                except UnknownObject as error:
                    _note(f"{name}: skipped an object: {error}")
                    continue
                found[service.key] = service
        return found

    def node(self, name: str) -> Node:
        nodes: list[Node] = []
        for raw in self._objects(name):
            try:
                nodes.append(read_node(raw))
            except UnknownObject as error:
                raise UsageError(
                    name, str(error), "kubectl get node NAME -o yaml prints one"
                ) from None
        if len(nodes) != 1:
            raise UsageError(name, f"wanted one Node, got {len(nodes)}")
        return nodes[0]

    @staticmethod
    def problems(services: dict[str, Service], node: Node) -> list[Any]:
        return [*node.problems, *(p for service in services.values() for p in service.problems)]

    def _objects(self, name: str) -> Any:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(name, error.strerror or str(error)) from None
        except ValueError:
            raise UsageError(name, "is no UTF-8 text") from None
        return read_objects(text, lambda why: self._broken(name, why))

    def _broken(self, name: str, why: str) -> None:
        _note(f"{name}: {why} (the objects before it are used)")
        self.status = UsageError.exit_status


def _diff(options: argparse.Namespace) -> int:
    from ipvs_node_agent.commands.diff import pending_changes

    changes = pending_changes(load(options.config), _note)
    text = "".join(f"# {command} --noflush\n{restore_input(change)}" for command, change in changes)
    _print(coloured_change(text) if takes_colours(sys.stdout) else text)
    return PENDING if changes else OK


def _status(options: argparse.Namespace) -> int:
    import shutil
    import time

    from ipvs_node_agent.host import rundir
    from ipvs_node_agent.observe import status as report
    from ipvs_node_agent.observe import statussocket

    try:
        made = statussocket.ask(rundir.directory())
    except statussocket.Unanswered as error:
        # A machine gets an answer all the same.
        if options.output == "json":
            _print(report.as_json(report.Report(error.state, error.why)))
        raise
    if options.output == "json":
        _print(report.as_json(made))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        _print(report.as_text(made, time.time(), width, takes_colours(sys.stdout)))
    return OK if made.state == report.IN_SYNC else PENDING


def _check(options: argparse.Namespace) -> int:
    from ipvs_node_agent.check.finding import FAIL, as_json, as_lines
    from ipvs_node_agent.commands.check import check

    findings = check(options.config)
    if options.output == "json":
        _print(as_json(findings))
    else:
        _print(as_lines(findings, takes_colours(sys.stdout)))
    return FAILED if any(finding.level == FAIL for finding in findings) else OK


def _cleanup(options: argparse.Namespace) -> int:
    from ipvs_node_agent.commands.diff import cleanup

    _print("".join(f"{line}\n" for line in cleanup(load(options.config))))
    return OK
