"""The figures of these pages, drawn from the committed records of the studies as a report draws its own.

python docs/figures.py [--out docs/figures]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from autodisc.reporting.drawing import draw
from autodisc.reporting.pictures import pictures
from autodisc.reporting.records import read_records
from autodisc.reporting.summary import summarize

ROOT = Path(__file__).parents[1]
LARGEST = 150_000  # bytes
SCALE = 1.5  # pixels of the file for one of the page
FIGURES = {
    "mrpc-tradeoff": ("mrpc", "Which teacher assistant"),
    "mrpc-cost": ("mrpc", "Student against cost: wall time"),
    "mrpc-stages": ("mrpc", "Where the cost went: wall time"),
    "sst2-tradeoff": ("sst2", "Which teacher assistant"),
    "sst2-neurons": ("sst2", "Kept neurons by layer"),
}  # file: study and the picture's title in its report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, drawn in drawings().items():
        (out / f"{name}.png").write_bytes(drawn)
        print(f"{name}.png: {len(drawn):,} bytes")


def drawings() -> dict[str, bytes]:
    """Every figure as PNG, by its name; raises ValueError for one that is too large for a page."""
    found = {}
    for study in dict.fromkeys(study for study, _ in FIGURES.values()):
        (summary,) = summarize(read_records([ROOT / "studies" / study / "results"])).studies
        found[study] = {picture.title: picture.figure for picture in pictures(summary)}
    drawn = {name: draw(found[study][title], scale=SCALE) for name, (study, title) in FIGURES.items()}
    for name, picture in drawn.items():
        if len(picture) > LARGEST:
            raise ValueError(f"{name}: got {len(picture)} bytes; a page's figure has {LARGEST} at most: lower SCALE")
    return drawn


if __name__ == "__main__":
    main()
