"""The flags, made from the table of settings."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from meshnode.config import CONFIG, OPTIONS, Kind, Option
from meshnode.errors import ConfigurationError

EVERY = (*OPTIONS, CONFIG)
PLACE = tuple(option for option in EVERY if option.key in {"data_dir", "config"})
"""Those that say which node is meant."""


class Parser(argparse.ArgumentParser):
    """One that complains as the rest of the program does: in one line, with what to do next."""

    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}.", hint=f"See: {self.prog} --help")


def add_options(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    """None is what `config` takes for: not given."""
    for option in options:
        match option.kind:
            case Kind.SWITCH:
                on = not option.flag.startswith("--no-")
                parser.add_argument(option.flag, dest=option.key, action="store_const", const=on, help=option.doc)
            case Kind.LIST:
                parser.add_argument(option.flag, dest=option.key, action="append", metavar=option.metavar, help=option.doc)
            case Kind.NUMBER:
                parser.add_argument(option.flag, dest=option.key, type=int, metavar=option.metavar, help=option.doc)
            case Kind.TEXT:
                parser.add_argument(option.flag, dest=option.key, metavar=option.metavar, help=option.doc)
