"""The report: one HTML page that opens offline, a Markdown summary, pictures and tables as files of their own.

    out.html    the page, and out.md beside it
    out.md      the Markdown alone
    out         a folder: report.html, report.md with its pictures, figures/*.png, tables/*.csv

plotly.js is inlined once; the page's own policy forbids every request. Names from outside are text,
never markup. Opens a finished study without torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import jinja2
import plotly.offline

from autodisc.errors import UserError
from autodisc.reporting import units
from autodisc.reporting.drawing import draw
from autodisc.reporting.pictures import Picture, pictures, side_by_side
from autodisc.reporting.records import read_records
from autodisc.reporting.rows import Summary
from autodisc.reporting.summary import summarize
from autodisc.reporting.table_files import study_tables
from autodisc.reporting.tables import Table, overview_table, tables
from autodisc.reporting.texts import markdown_table, md, put_in_place

PROJECT = "autodisc"
PAGE, TEXT, FIGURES, TABLES = "report.html", "report.md", "figures", "tables"


class Told(Protocol):
    """What a part of a page is about, and says of it before tables and pictures."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def student_sparsity(self) -> float | None: ...
    @property
    def verdict(self) -> tuple[str, ...]: ...
    @property
    def against(self) -> tuple[str, ...]: ...
    @property
    def caveats(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Part:
    """One study of a page."""

    study: Told
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...] = ()
    headline: str = ""


@dataclass(frozen=True)
class Overview:
    """What stands above the studies where there are several."""

    tables: tuple[Table, ...]
    picture: Picture | None
    sentences: tuple[str, ...] = ()


FORMATS = (".html", ".htm", ".md")


def write_report(folders: Sequence[Path], out: Path, *, lam: float | None = None) -> Summary:
    """Write ``out``, by its suffix, from the records in ``folders``; nothing on error."""
    suffix = _suffix(out)
    if suffix not in (*FORMATS, ""):
        raise UserError(
            f"out: got {out}; expected a name that ends in .html (the .md is written beside it) or in .md, or a folder,"
            " which gets both, the pictures as PNG and the tables as CSV"
        )
    if lam is not None and not lam >= 0.0:
        raise UserError(f"lam: got {lam}; expected a number of at least 0, such as the authors' 0.2")
    summary = summarize(read_records(folders), lam=lam)
    files: dict[Path, str | bytes]
    if suffix == ".md":
        files = {out: render_markdown(summary)}
    elif suffix:
        files = {out: render_html(summary), out.with_suffix(".md"): render_markdown(summary)}
    else:
        files = {out / name: content for name, content in render_folder(summary).items()}
    put_in_place(out, files)
    return summary


def page_of(out: Path) -> Path:
    """The file to open first of what ``write_report`` wrote."""
    return out if _suffix(out) else out / PAGE


def _suffix(out: Path) -> str:
    """A file's; none of a folder, one that is there or is called mrpc-0.9."""
    is_folder = out.is_dir() or any(character.isdigit() for character in out.suffix)
    return "" if is_folder else out.suffix.lower()


def render_html(summary: Summary) -> str:
    return page(title_of(summary), _parts(summary, drawn=True), overview=_overview(summary))


def render_markdown(summary: Summary) -> str:
    return text(title_of(summary), _parts(summary, drawn=False), overview=_overview(summary))


def render_folder(summary: Summary) -> dict[str, str | bytes]:
    """Every file of the folder by its path in it."""
    parts, overview = _parts(summary, drawn=True), _overview(summary)
    drawn = [picture for part in parts for picture in part.pictures]
    if overview is not None and overview.picture is not None:
        drawn.append(overview.picture)
    names = {id(picture): f"{FIGURES}/{number:02d}-{_slug(picture.title)}.png" for number, picture in enumerate(drawn)}
    files: dict[str, str | bytes] = {names[id(picture)]: draw(picture.figure) for picture in drawn}
    files |= {f"{TABLES}/{name}.csv": rows for name, rows in study_tables(summary.studies).items()}
    files[PAGE] = page(title_of(summary), parts, overview=overview)
    files[TEXT] = text(title_of(summary), parts, overview=overview, files=names)
    return files


def page(title: str, parts: Sequence[Part], *, overview: Overview | None = None) -> str:
    """HTML that is complete in itself."""
    template = _environment().get_template("report.html.j2")
    return template.render(
        title=title,
        studies=parts,
        study_title=study_title,
        overview=overview,
        plotly_js=plotly.offline.get_plotlyjs(),
        project=PROJECT,
    )


def text(
    title: str, parts: Sequence[Part], *, overview: Overview | None = None, files: dict[int, str] | None = None
) -> str:
    """Markdown: what the page says; with the pictures where ``files`` says by their ``id`` where they lie."""
    written = [f"# {md(title)}"]
    if overview is not None:
        if overview.sentences:
            written.append("\n".join(f"- {md(sentence)}" for sentence in overview.sentences))
        written += [*_images([overview.picture], files)]
        written += [markdown_table(table) for table in overview.tables]
    for part in parts:
        study = part.study
        if len(parts) > 1:
            seed = getattr(study, "seed", None)  # a comparison's part has several
            written.append(f"## {md(study_title(study))}" + ("" if seed is None else f", seed {seed}"))
        if part.headline:
            written.append(f"**{md(part.headline)}**")
        written.append("\n".join(md(sentence) + "  " for sentence in study.verdict).rstrip())
        for heading, sentences in (("What speaks against it", study.against), ("Caveats", study.caveats)):
            if sentences:
                written.append(f"**{heading}**\n\n" + "\n".join(f"- {md(sentence)}" for sentence in sentences))
        written += _images(part.pictures, files)
        written += [markdown_table(table) for table in part.tables]
    return "\n\n".join(written) + "\n"


def _images(shown: Sequence[Picture | None], files: dict[int, str] | None) -> list[str]:
    if files is None:
        return []
    return [f"![{md(one.title)}: {md(one.alternative)}]({files[id(one)]})" for one in shown if one is not None]


def _parts(summary: Summary, *, drawn: bool) -> list[Part]:
    return [Part(study, tables(study), pictures(study) if drawn else (), study.headline) for study in summary.studies]


def _overview(summary: Summary) -> Overview | None:
    if len(summary.studies) < 2:
        return None
    return Overview((overview_table(summary.studies),), side_by_side(summary.studies))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("λ", "lambda")).strip("-")


def study_title(study: Told) -> str:
    told = f"{study.name}: {study.task}"  # a teacher alone has no student yet, and no sparsity where a budget finds it
    return told if study.student_sparsity is None else f"{told}, student of sparsity {study.student_sparsity:g}"


def title_of(summary: Summary) -> str:
    if len(summary.studies) == 1:
        return study_title(summary.studies[0])
    return f"{PROJECT}: {units.plural(len(summary.studies), 'study').replace('studys', 'studies')}"


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("autodisc.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
