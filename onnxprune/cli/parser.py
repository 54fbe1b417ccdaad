"""Parsers whose errors name what was meant, and whose help fits the terminal."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NoReturn

from onnxprune.errors import UsageError, did_you_mean

__all__ = ["CommandParser", "Help", "TopParser", "flags_of", "paragraphs"]


#: Stands for the space between an option and its value, where no line ends.
_TIED = "\x01"


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples as far as they fit, and wraps others where a shell or a reader takes them."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = [line for part in text.splitlines() for line in _broken(part, width)]
        return "".join(f"{indent}{line}\n" for line in lines)


def _broken(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip())]
    command = line.lstrip().startswith("onnxprune ")
    hang = start + ("    " if command else "")
    text = re.sub(r"( --?[\w-]+) (?=[^ -])", rf"\1{_TIED}", line.strip()) if command else line.strip()
    wrapped = textwrap.wrap(
        text,
        width - 2 if command else width,
        initial_indent=start,
        subsequent_indent=hang,
        break_long_words=False,
        break_on_hyphens=False,
    )
    wrapped = [part.replace(_TIED, " ") for part in wrapped]
    return [part + " \\" for part in wrapped[:-1]] + wrapped[-1:] if command else wrapped


def paragraphs(text: str) -> str:
    """Return a text whose lines of one paragraph are one line: those that follow each other with the same indent.

    Commands and tables, whose lines have two spaces within, stay lines of their own.
    """
    return "\n".join(_joined(text))


def _joined(text: str) -> Iterator[str]:
    def key(line: str) -> tuple[int, bool]:
        plain = line.strip()
        return len(line) - len(line.lstrip()), not plain or plain.startswith("onnxprune ") or "  " in plain

    for (_, alone), lines in groupby(text.splitlines(), key):
        if alone:
            yield from lines
        else:
            first, *more = lines
            yield " ".join([first, *(line.strip() for line in more)])


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are `UsageError`, so that every error looks the same."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong.

        Raises
        ------
        UsageError
            Always.
        """
        raise UsageError(f"{message}; see '{self.prog} --help'.")


class TopParser(CommandParser):
    """The parser of all commands."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.commands: dict[str, argparse.ArgumentParser] = {}
        self._later: dict[str, Iterator[None]] = {}

    def later(self, steps: Iterator[None]) -> None:
        """Add a command's name now, by the first of two steps, and its options when they are asked for."""
        known = set(self.commands)
        next(steps)
        (name,) = set(self.commands) - known
        self._later[name] = steps

    def fill(self, *names: str) -> None:
        """Add the options of some commands, or of all."""
        for name in names or tuple(self._later):
            for _ in self._later.pop(name, ()):
                pass

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Read the command line; what isn't known is compared with what is.

        Raises
        ------
        UsageError
            If something is unknown or missing.
        """
        first = next(iter(args), "")
        if not first.startswith("-"):
            if first:
                self.check_command(first)
            self.fill(first)
        elif first not in ("-h", "--help", "--version"):
            self.fill()
        known: argparse.Namespace
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            self._refuse(known.command, rest)
        _refuse_empty(self.commands[known.command], known)
        return known

    def check_command(self, name: str) -> None:
        """Refuse a command that there isn't.

        Raises
        ------
        UsageError
            With the name that is most like it.
        """
        if name not in self.commands:
            listed = ", ".join(self.commands)
            raise UsageError(
                f"There is no command {name!r}; they are {listed}.{did_you_mean(name, self.commands)}"
            )

    def _refuse(self, command: str, rest: Sequence[str]) -> NoReturn:
        self.fill()
        given = next((text for text in rest if text.startswith("-")), rest[0]).partition("=")[0]
        others = [repr(name) for name, parser in self.commands.items() if given in flags_of(parser)]
        hint = f" It is an option of {', '.join(others)}." if others else ""
        if not hint and given.startswith("--"):
            hint = did_you_mean(given, flags_of(self.commands[command]))
        raise UsageError(
            f"unrecognized arguments: {' '.join(rest)}; see '{self.commands[command].prog} --help'.{hint}"
        )


def _refuse_empty(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse empty texts, which are no value of anything: as a path one would be the folder that we are in."""
    for action in parser._actions:
        value = getattr(given, action.dest, None)
        if value == "" or (isinstance(value, list) and "" in value):
            name = "/".join(action.option_strings) or action.metavar or action.dest
            raise UsageError(f"{name} is given an empty text; is it a variable that the shell doesn't know?")


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of a parser."""
    return [flag for flag in parser._option_string_actions if flag.startswith("--")]
