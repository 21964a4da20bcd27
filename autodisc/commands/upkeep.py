"""doctor, clean: is this machine fit, and what do caches take. torch is imported where it is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autodisc.commands.options import Debug, Json
from autodisc.commands.output import example, print_json

app = typer.Typer()

CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", metavar="DIR", help="$AUTODISC_CACHE or ~/.cache/autodisc unless given.")
]


@app.command(epilog=example("autodisc doctor"))
def doctor(
    storage: Annotated[str | None, typer.Option("--storage", metavar="URL", help="Is this storage reachable?")] = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Versions, devices, memory and disk, the cache, a storage: what is right, what is not, what to do; 1 if broken."""
    from autodisc.doctor import examine

    result = examine(cache=cache_dir, storage=storage)
    if json_:
        print_json(result)
    else:
        from autodisc.reporting.upkeep import print_examination

        print_examination(result)
    if result["broken"]:
        raise typer.Exit(1)


@app.command(epilog=example("autodisc clean --older-than 30 --yes"))
def clean(
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="What was not used for so long.")
    ] = None,
    max_gib: Annotated[
        float | None,
        typer.Option("--max-gib", metavar="GIB", min=0, help="The least recently used, down to this."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only listed.")] = False,
    cache_dir: CacheDir = None,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """List caches by age and size, and make room. Results are never touched; what goes is made again when needed.

    With either limit goes, too, what a process left unfinished or damaged more than an hour ago.
    """
    from autodisc import caches

    folder = cache_dir or caches.default_folder()
    result = caches.clean(folder, older_than_days=older_than, max_gib=max_gib, remove=yes)
    if json_:
        print_json(result)
    else:
        from autodisc.reporting.upkeep import print_cache

        print_cache(result)
