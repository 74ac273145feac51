"""`meshnode remotes`: the clusters and routers of every node of the mesh, and why one is not what it might be."""

import argparse

from meshnode.cli import report

SUMMARY = "list the clusters and routers that the nodes of the mesh bridge"
EXAMPLE = "Exit code: 0, or 1 when no node runs here. Example: meshnode remotes --watch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    report.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshnode import listing

    part = report.Part(table=listing.remotes, facts=lambda found, _: listing.remote_places(found.members))
    return report.run(arguments, part, lambda _: 0)
