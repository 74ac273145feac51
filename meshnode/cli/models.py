"""`meshnode models`: every model of the mesh, and where it is."""

import argparse

from meshnode.cli import report

SUMMARY = "list the models of the mesh and the nodes that hold them"
EXAMPLE = "Exit code: 0, or 1 when no node runs here. Example: meshnode models --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    report.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshnode import listing

    part = report.Part(table=listing.models, facts=lambda found, _: listing.places(found.members))
    return report.run(arguments, part, lambda _: 0)
