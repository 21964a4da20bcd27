"""A figure as PNG or SVG, for papers and pull requests: the traces of ``figures`` drawn again by matplotlib.

Plotly's own way to a picture is kaleido, which starts a browser and fails where there is none; matplotlib is a wheel
for every platform. One picture, one description: whatever is changed in a figure changes here too. Only what our
figures hold is drawn: scatter, horizontal bars, heat maps, lines across, annotations, linear and log axes.
"""

from __future__ import annotations

import io
import warnings
from html import unescape
from typing import Any, Literal

import plotly.graph_objects as go

PIXELS = 96  # an inch, as browsers count
WIDTH = 760  # pixels of the page that a figure is laid out for
INK, PALE = "#30363d", "#d5d9de"
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "star": "*", "x-thin": "x", "cross": "P", "x": "X",
    "triangle-up": "^", "triangle-down": "v", "triangle-left": "<", "triangle-right": ">", "pentagon": "p",
}  # fmt: skip
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def draw(figure: go.Figure, *, format: Literal["png", "svg"] = "png", scale: float = 2.0, width: int = WIDTH) -> bytes:
    """The figure on white, ``scale`` times as many pixels as on the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    plain = figure.to_plotly_json()
    layout = plain["layout"]
    height = layout.get("height") or 400
    drawn = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS * scale, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    _axes(axes, layout)
    bars: dict[Any, float] = {}
    for trace in figure.data:
        if trace.visible in (None, True):
            {"scatter": _scatter, "bar": _bar, "heatmap": _heatmap}[trace.type](axes, trace, bars)
    _ranges(axes, layout)
    for shape in layout.get("shapes") or ():
        _line_across(axes, shape)
    for note in layout.get("annotations") or ():
        _annotate(axes, note)
    handles, labels = axes.get_legend_handles_labels()
    if labels and layout.get("showlegend") is not False:
        drawn.legend(
            handles,
            labels,
            loc="outside lower left",
            ncols=min(3, len(labels)),
            frameon=False,
            fontsize=8,
            labelcolor=INK,
        )
    for text in drawn.findobj(Text):
        text.set_parse_math(False)  # a name may hold a $
    file = io.BytesIO()
    with warnings.catch_warnings():  # a name in a script that the font lacks is drawn as boxes
        warnings.simplefilter("ignore", UserWarning)
        drawn.savefig(file, format=format, metadata={"Software": "autodisc"} if format == "png" else None)
    return file.getvalue()


def _axes(axes: Any, layout: dict[str, Any]) -> None:
    axes.set_xlabel(_words(_title(layout, "xaxis")), color=INK, fontsize=9)
    axes.set_ylabel(_words(_title(layout, "yaxis")), color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PALE)
    if layout.get("xaxis", {}).get("type") == "log":
        axes.set_xscale("log")


def _ranges(axes: Any, layout: dict[str, Any]) -> None:
    for name, axis, limits in (("xaxis", axes.xaxis, axes.set_xlim), ("yaxis", axes.yaxis, axes.set_ylim)):
        asked = layout.get(name, {})
        if asked.get("range") is not None:
            low, high = asked["range"]
            limits(*((10**low, 10**high) if asked.get("type") == "log" else (low, high)))
        if asked.get("tickvals") is not None:
            texts = asked.get("ticktext")
            axis.set_ticks(
                [_value(value) for value in asked["tickvals"]],
                None if texts is None else [_words(text) for text in texts],
            )
            axis.set_ticks([], minor=True)
        elif asked.get("tickformat") == "~s":
            from matplotlib.ticker import EngFormatter

            axis.set_major_formatter(EngFormatter(sep=""))
            axis.set_ticks([], minor=True)
        if asked.get("autorange") == "reversed":
            axis.set_inverted(True)


def _value(value: Any) -> Any:
    """A point's coordinate: a category as it is read, and a gap where there is none."""
    return _words(value) if isinstance(value, str) else float("nan") if value is None else value


def _scatter(axes: Any, trace: Any, _: dict[Any, float]) -> None:
    mode, marker, line = trace.mode or "lines", trace.marker, trace.line
    color = line.color or marker.color or INK
    symbol = marker.symbol
    name = symbol if isinstance(symbol, str) else "circle"
    hollow = name.endswith("-open") and not name.startswith("x")
    x, y = ([_value(value) for value in values] for values in (trace.x, trace.y))
    axes.errorbar(
        x,
        y,
        xerr=_error(trace.error_x),
        yerr=_error(trace.error_y),
        color=color,
        linestyle=DASHES.get(line.dash or "solid", "-") if "lines" in mode else "none",
        linewidth=line.width or 1.6,
        drawstyle="steps-post" if line.shape == "hv" else "default",
        marker=MARKERS.get(name.removesuffix("-open"), "o") if "markers" in mode else None,
        markersize=marker.size * 0.7 if isinstance(marker.size, int | float) else 5,
        markerfacecolor="none" if hollow else color,
        capsize=2.5,
        elinewidth=1,
        label=_words(trace.name) if trace.name and trace.showlegend is not False else None,
    )
    texts = trace.text if isinstance(trace.text, list | tuple) else ()
    if "text" in mode:
        left = "left" in (trace.textposition or "")
        beside = left or "right" in (trace.textposition or "")
        for place, text in zip(zip(x, y, strict=True), texts, strict=False):
            axes.annotate(
                _words(text),
                place,
                xytext=((-8 if left else 8) if beside else 0, 0 if beside else 7),
                textcoords="offset points",
                ha=("right" if left else "left") if beside else "center",
                va="center" if beside else "bottom",
                fontsize=8,
                color=INK,
            )


def _error(bars: Any) -> Any:
    if bars.array is None or bars.visible is False:
        return None
    above = [value or 0.0 for value in bars.array]
    return above if bars.arrayminus is None else [[value or 0.0 for value in bars.arrayminus], above]


def _bar(axes: Any, trace: Any, ends: dict[Any, float]) -> None:
    widths = [value or 0.0 for value in trace.x]
    names = [_words(name) for name in trace.y]
    pattern = trace.marker.pattern.shape or ""
    axes.barh(
        names,
        widths,
        left=[ends.get(name, 0.0) for name in names],
        height=0.6,
        color=trace.marker.color,
        edgecolor=INK,
        linewidth=0.5,
        hatch={"": None, "x": "xx"}.get(pattern, pattern * 2),
        label=_words(trace.name),
    )
    for name, width in zip(names, widths, strict=True):
        ends[name] = ends.get(name, 0.0) + width


def _heatmap(axes: Any, trace: Any, _: dict[Any, float]) -> None:
    from matplotlib import colormaps

    z = [list(row) for row in trace.z]
    colors = colormaps["cividis"]
    image = axes.imshow(z, aspect="auto", origin="lower", cmap=colors, vmin=trace.zmin, vmax=trace.zmax)
    axes.grid(False)
    _categories(axes.xaxis, [_words(str(name)) for name in trace.x])
    _categories(axes.yaxis, [_words(str(name)) for name in trace.y])
    if trace.texttemplate:
        for row, values in enumerate(z):
            for column, value in enumerate(values):
                dark = image.norm(value) < 0.55
                text = str(value) if trace.text is None else str(trace.text[row][column])
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


def _categories(axis: Any, names: list[str]) -> None:
    stride = -(-len(names) // 24)
    axis.set_ticks(range(0, len(names), stride), names[::stride])


def _line_across(axes: Any, shape: dict[str, Any]) -> None:
    line = shape.get("line", {})
    style = {
        "color": line.get("color", INK), "linestyle": DASHES.get(line.get("dash", "solid"), "-"), "linewidth": 1.2,
    }  # fmt: skip
    if shape.get("xref", "").endswith("domain"):
        axes.axhline(shape["y0"], **style)
    else:
        axes.axvline(shape["x0"], **style)


def _annotate(axes: Any, note: dict[str, Any]) -> None:
    x_free, y_free = (str(note.get(ref, "")).endswith(("domain", "paper")) for ref in ("xref", "yref"))
    transform = axes.get_xaxis_transform() if y_free else axes.get_yaxis_transform() if x_free else axes.transData
    x = note["x"]
    if not x_free and axes.get_xscale() == "log":
        x = 10**x
    axes.annotate(
        _words(note.get("text", "")),
        (x, note["y"]),
        xycoords=transform,
        xytext=(note.get("xshift", 0) * 0.75, note.get("yshift", 0) * 0.75),
        textcoords="offset points",
        ha={"left": "left", "right": "right"}.get(note.get("xanchor", ""), "center"),
        va={"top": "top", "bottom": "bottom"}.get(note.get("yanchor", ""), "center"),
        fontsize=8,
        color=INK,
    )


def _title(layout: dict[str, Any], axis: str) -> str:
    return layout.get(axis, {}).get("title", {}).get("text") or ""


def _words(text: str) -> str:
    return unescape(text.replace("<br>", "\n"))
