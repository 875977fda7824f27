"""Prove a run: python jobs/verify.py --output RUN. Every planned image once, each with the bytes of its commit.

With --clean it first deletes what killed writers left behind: reconstructions that no commit and no pending unit names,
and half-written files. A run does not do that by itself.
"""

from __future__ import annotations

import sys

from jsonargparse import ArgumentParser

from flashray.cli import exit_code
from flashray.pipeline.clean import clean
from flashray.pipeline.verify import verify
from flashray.storage.working_folder import refuse_relative


def main() -> int:
    """Exit code 0: every planned image is restored; 1: some failed or are pending, or a commit is contradicted."""
    parser = ArgumentParser(prog="verify", description="Prove that a run directory holds what its commits say.")
    parser.add_argument("--output", type=str, required=True, help="a run directory: a folder or s3:// prefix")
    parser.add_argument("--clean", action="store_true", help="first delete files that no commit names")
    arguments = parser.parse_args()
    output = arguments.output

    def work() -> int:
        refuse_relative(output=output)
        if arguments.clean:
            orphans = clean(output)
            print("\n".join([f"{len(orphans):,} files that no commit names are deleted", *orphans]))
        found = verify(output)
        print("\n".join(found.lines()))
        print("complete" if found.complete else "sound, not complete" if found.sound else "NOT SOUND")
        return 0 if found.complete else 1

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
