"""Does the choice of the teacher assistant pay, and what did it cost? Strategies by seeds, tasks and students.

    python benchmarks/compare.py studies/glue-minilm/config.yaml --out runs/glue-minilm --workers 2

The same as `autodisc compare`, which says what its options are: it goes on where it was stopped.
"""

from __future__ import annotations

import sys

from autodisc.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
