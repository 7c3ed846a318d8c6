"""The command line: its commands, and the one place where errors become text and status."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ipvs_node_agent import __version__
from ipvs_node_agent.commands import output
from ipvs_node_agent.commands.output import PROGRAM
from ipvs_node_agent.errors import AgentError, RefusedError, UsageError, one_line
from ipvs_node_agent.host.systemd import JournalFormatter, is_journal
from ipvs_node_agent.model.addresses import FAMILIES, IPV4, Family, Network, parse_network
from ipvs_node_agent.model.objects import INTERFACE_WANTED, is_interface


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `arguments`, and gives the exit status."""
    output.keep_closed_streams_closed()
    try:
        return _run_command(arguments)
    finally:
        # What cannot be written would be tried again, and change the exit status, at the end.
        output.write(sys.stderr, "")


def _run_command(arguments: Sequence[str] | None) -> int:
    try:
        options = _parser().parse_args(arguments)
        _set_up_logging(options.log_level)
        # Only now, and only this one: what others need would keep --help waiting.
        command = import_module(f"ipvs_node_agent.commands.{options.command}")
        status: int = command.main(options)
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
            output.INTERNAL_ERROR,
        )


def _fail(text: str, status: int) -> int:
    output.complain(logging.ERROR, text)
    return status


class _Parser(argparse.ArgumentParser):
    """Reports bad usage as every other error, and takes no option by half its name."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError("command line", message, f"see {self.prog} --help")

    def _print_message(self, message: str, file: Any = None) -> None:
        # Help and version: argparse would not say that they cannot be written.
        output.print_text(message)


def _parser() -> argparse.ArgumentParser:
    # Taken before and after the command: where it is left out, the other place counts.
    common = _Parser(add_help=False)
    levels = ("debug", "info", "warning", "error")
    for parser, default in ((common, argparse.SUPPRESS), (main_parser := _Parser(PROGRAM), None)):
        text = "the configuration file (default: /etc/ipvs-node-agent/config.yaml, if it exists)"
        parser.add_argument("--config", metavar="FILE", type=Path, default=default, help=text)
        text = "how much to log (default: info)"
        parser.add_argument("--log-level", choices=levels, default=default or "info", help=text)
    main_parser.description = "Makes external IPs of Services reachable from inside the cluster."
    main_parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = main_parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    command("run", "watch the cluster and keep the rules in sync, until SIGTERM or SIGINT")
    render = command("render", "print the rules for Services in a file; needs no root")
    text = "output of kubectl get services -A -o yaml (or json); - for standard input"
    render.add_argument("-f", "--file", metavar="FILE", action="append", required=True, help=text)
    text = "the address family (default: IPv4)"
    render.add_argument("--family", type=_family, default=IPV4, metavar="{IPv4,IPv6}", help=text)
    text = "a pod CIDR of the node (may be repeated)"
    render.add_argument("--pod-cidr", metavar="CIDR", type=_cidr, action="append", help=text)
    text = "an interface that leads to pods, or a prefix that ends in + (may be repeated)"
    flag = "--pod-interface"
    render.add_argument(flag, metavar="NAME", type=_interface, action="append", help=text)
    text = "a Node object, for its pod CIDRs and addresses"
    render.add_argument("--node", metavar="FILE", help=text)
    command("diff", "print what run would change now, without changing it")
    status = command("status", "ask the running agent whether it is in sync")
    text = "show only this Service (may be repeated)"
    form = "[NAMESPACE/]NAME"
    status.add_argument("services", metavar=form, nargs="*", help=text)
    check = command("check", "check the set-up, and say what to fix")
    explain = command("explain", "say why an external IP works from this node, or does not")
    text = "IP, IP:PORT, IP:PORT/udp, [IPv6]:PORT or NAMESPACE/NAME (all external IPs of a Service)"
    explain.add_argument("target", metavar="TARGET", help=text)
    text = "also make real TCP connections, from the host and from a pod of this node"
    explain.add_argument("--connect", action="store_true", help=text)
    for asked in (status, check, explain):
        forms, text = ("text", "json"), "the output format (default: text)"
        asked.add_argument("-o", "--output", choices=forms, default="text", help=text)
    config = command("config", "read the configuration, and print what is in effect")
    text = "the configuration file, in place of --config"
    config.add_argument("file", metavar="FILE", nargs="?", type=Path, help=text)
    config.add_argument("--quiet", action="store_true", help="print nothing but errors")
    command("cleanup", "remove every rule and chain that the agent ever made")
    return main_parser


def _family(text: str) -> Family:
    for family in FAMILIES:
        if text == family.name:
            return family
    raise argparse.ArgumentTypeError(f"wanted IPv4 or IPv6, got {text!r}")


def _interface(text: str) -> str:
    if not is_interface(text):
        raise argparse.ArgumentTypeError(f"wanted {INTERFACE_WANTED}, got {text!r}")
    return text


def _cidr(text: str) -> Network:
    try:
        network = parse_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None
    if network.prefixlen == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} matches every address, not only this node's pods"
        )
    return network


class _LogHandler(logging.StreamHandler):  # type: ignore[type-arg]  # Python 3.9 takes none
    def handleError(self, record: logging.LogRecord) -> None:
        """Drops a line that cannot be written; to say so at length would be as much in vain."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _set_up_logging(level: str) -> None:
    handler = _LogHandler()
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    journal = is_journal(sys.stderr)
    handler.setFormatter(JournalFormatter("%(message)s") if journal else formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What the libraries below say is said again, better, by the errors raised here.
    for name in ("urllib3", "kubernetes", "sh"):
        logging.getLogger(name).setLevel(logging.ERROR)
