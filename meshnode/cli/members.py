"""`meshnode members`: who is in the mesh, one line each, with what `status` has no room for."""

import argparse

from meshnode.cli import report

SUMMARY = "list the members of the mesh, with ids and addresses"
EXAMPLE = "Exit code: 0, or 1 when no node runs here. Example: meshnode members --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    report.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshnode import listing

    return report.run(arguments, report.Part(table=listing.members, facts=lambda _, whole: whole["members"]), lambda _: 0)
