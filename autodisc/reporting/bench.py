"""What `autodisc bench` found, as tables of text."""

from __future__ import annotations

from typing import Any

from autodisc.reporting import units
from autodisc.reporting.tables import Table


def bench_tables(result: dict[str, Any]) -> tuple[Table, Table]:
    """Models by size; and a row each for model, runtime, batch and length."""
    return _models(result["models"]), _rows(result)


def _models(models: list[dict[str, Any]]) -> Table:
    rows = tuple(
        (
            model["name"],
            units.scaled(model["encoder_parameters"]),
            units.share(model["of_the_first"]),
            units.scaled(model["parameters"]),
            " ".join(map(str, model["heads"])),
            " ".join(map(str, model["neurons"])),
        )
        for model in models
    )
    columns = ("model", "encoder parameters", "of the first's", "all", "heads by layer", "neurons by layer")
    return Table("Models", columns, rows, words=(0, 4, 5))


def _rows(result: dict[str, Any]) -> Table:
    columns = (
        "model",
        "runtime",
        "batch",
        "length",
        "median ms",
        "p95 ms",
        "rows/s",
        "times as fast",
        "as the first",
        "MACs: times fewer",
        "achieved",
        "embedding",
        "encoder",
        "classifier",
    )
    rows = tuple(
        (
            row["model"],
            row["runtime"],
            str(row["batch"]),
            str(row["length"]),
            f"{row['median_ms']:.3g}",
            f"{row['p95_ms']:.3g}",
            f"{row['rows_per_s']:.4g}",
            units.fixed(row["times_as_fast"], 2),
            units.fixed(row["as_the_first"], 2),
            units.fixed(row["mac_reduction"], 2),
            units.share(row["achieved"]),
            *(units.share(row[f"{part}_share"]) for part in ("embedding", "encoder", "classifier")),
        )
        for row in result["rows"]
    )
    where = result["environment"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers", "onnxruntime") if name in where)
    title = (
        f"Latency: {where['hardware']}, {where['device']}, {units.plural(where['threads'], 'thread')},"
        f" {where['precision']}; {versions}"
    )
    return Table(title, columns, rows, words=(0, 1))
