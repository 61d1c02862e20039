"""
`manage.py outboxd`: the command line of outboxd, with Django's settings loaded.

Without a command it is the daemon; so receivers may use Django's models, as nowhere else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser, handle_default_options
from django.db import DEFAULT_DB_ALIAS, connections
from django.utils.connection import ConnectionDoesNotExist

import outboxd.__main__
from outboxd import commands, errors, producer
from outboxd.contrib.django import configuration


class Command(BaseCommand):
    """
    Passes everything on that is not Django's own.

    The file of OUTBOXD_CONFIG is put before it as `--config`: one that is given on the command line wins.
    """

    help = "Run outboxd: the daemon, or any of its commands (manage.py outboxd check)."

    def run_from_argv(self, argv: list[str]) -> None:
        """Run, and end this process with outboxd's own exit code."""
        options, rest = _parser().parse_known_args(argv[2:])
        handle_default_options(options)
        try:
            arguments = _arguments(options.database, rest)
        except errors.ConfigError as exc:
            commands.report(exc)
            sys.exit(exc.exit_code)
        outboxd.__main__.main(arguments)

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        """Make the parser of `call_command`: what is not Django's own goes on to outboxd, options too."""
        parser = super().create_parser(prog_name, subcommand, allow_abbrev=False, **options)

        def parse_args(args: Sequence[str] | None = None, _: Any = None) -> argparse.Namespace:
            known, rest = parser.parse_known_args(args)
            return argparse.Namespace(**vars(known), arguments=rest)

        parser.parse_args = parse_args  # type: ignore[assignment, method-assign]
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare what `call_command` takes besides."""
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS)

    def handle(self, *_: Any, **options: Any) -> None:
        """
        Run for `call_command`.

        Raises:
            CommandError: It did not end with 0; the text is on stderr.
        """
        try:
            arguments = _arguments(options["database"], options["arguments"])
        except errors.ConfigError as exc:
            raise CommandError(str(exc), returncode=exc.exit_code) from exc
        with producer.restored():
            code = commands.run(arguments)
        if code:
            raise CommandError(f"it ended with {code}, as said on stderr", returncode=code)


def _parser() -> argparse.ArgumentParser:
    """Make a parser for what is Django's, or ours; `--help` is outboxd's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings")
    parser.add_argument("--pythonpath")
    parser.add_argument("--database", default=DEFAULT_DB_ALIAS)
    return parser


def _arguments(database: str, rest: Sequence[str]) -> list[str]:
    try:
        connections[database]
        path = configuration.path_of(database)
    except (ConnectionDoesNotExist, ImproperlyConfigured) as exc:
        raise errors.ConfigError([f"--database: {exc}"]) from exc
    given = [each for number, each in enumerate(rest) if number or each != "--"]
    return [*([] if path is None else ["--config", str(path)]), *given]
