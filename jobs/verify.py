"""Prove a run: python jobs/verify.py --output RUN. Every planned image once, each with the bytes of its commit."""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser

from flashray.cli import exit_code
from flashray.pipeline.verify import verify
from flashray.places import refuse_relative


def main() -> int:
    """Exit code 0: every planned image is restored; 1: some failed or are pending, or a commit is contradicted."""
    parser = ArgumentParser(prog="verify", description="Prove that a run directory holds what its commits say.")
    parser.add_argument("--output", type=str, required=True, help="a run directory: a folder or s3:// prefix")
    output = parser.parse_args().output

    def work() -> int:
        refuse_relative(output=output)
        found = verify(output)
        print("\n".join(found.lines()))
        print("complete" if found.complete else "sound, not complete" if found.sound else "NOT SOUND")
        return 0 if found.complete else 1

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
