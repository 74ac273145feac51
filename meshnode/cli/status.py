"""`meshnode status`: the whole mesh as the node of this data directory sees it."""

import argparse

from meshnode.cli import report

SUMMARY = "show this node, the members of its mesh and what is wrong"
EXAMPLE = "Exit code: 0 healthy, 1 no node runs here, 2 degraded. Example: meshnode status --watch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    report.add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from meshnode import status

    part = report.Part(table=status.render, facts=lambda _, whole: whole)
    return report.run(arguments, part, lambda found: 2 * status.is_degraded(found))
