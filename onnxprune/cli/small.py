"""Commands that need no model: help, version, completion for shells."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from onnxprune.cli.parser import Help, TopParser
from onnxprune.errors import UsageError

__all__ = ["FILES", "SHELLS", "Version", "add_small"]

SHELLS = ("bash", "zsh", "tcsh")
#: What shtab reads of an argument that is a file; its own ``shtab.FILE``.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}


class Version(argparse.Action):
    """Prints the version, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        """Print it."""
        _version()
        parser.exit()


def add_small(top: TopParser, commands: Any) -> None:
    """Add these commands; what they do is ``args.at_once()``."""
    helping = _add(commands, "help", "show the help of a command, or of all")
    helping.add_argument("topic", metavar="COMMAND", nargs="?", help="a command; all of them otherwise")
    version = _add(commands, "version", "print the version")
    version.add_argument("--json", action="store_true", help="print JSON")
    completing = _add(
        commands, "completion", "print what completes commands and options in a shell", _COMPLETION
    )
    completing.add_argument("shell", metavar="|".join(SHELLS), help="the shell")
    helping.set_defaults(at_once=lambda args: _help(top, args.topic))
    version.set_defaults(at_once=lambda args: _version(args.json))
    completing.set_defaults(at_once=lambda args: _complete(top, args.shell))


_COMPLETION = """\
examples:
  onnxprune completion bash > ~/.local/share/bash-completion/completions/onnxprune
  onnxprune completion zsh > "${fpath[1]}/_onnxprune"
"""


def _add(commands: Any, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog, formatter_class=Help
    )
    parser.set_defaults(verbose=False, quiet=False, max_memory=None, max_seconds=None)
    return parser


def _help(top: TopParser, topic: str | None) -> None:
    if topic is None:
        top.print_help()
        return
    top.check_command(topic)
    top.fill(topic)
    top.commands[topic].print_help()


def _version(as_json: bool = False) -> None:
    from onnxprune.version import __version__

    print(f'{{"onnxprune": "{__version__}"}}' if as_json else f"onnxprune {__version__}")


def _complete(top: TopParser, shell: str) -> None:
    if shell not in SHELLS:
        raise UsageError(f"'completion' knows {', '.join(SHELLS)}; got {shell!r}.")
    try:
        shtab = import_module("shtab")
    except ImportError as error:
        raise UsageError(
            "'completion' needs shtab, which isn't installed; 'pip install shtab', or 'onnxprune[completion]'."
        ) from error
    top.fill()
    print(shtab.complete(top, shell))
