"""A PNG of every kind of figure; what it looks like was looked at."""

from __future__ import annotations

import struct

import plotly.graph_objects as go
import pytest

from autodisc.reporting.drawing import PIXELS, draw
from autodisc.reporting.pictures import pictures
from autodisc.reporting.records import read_records
from autodisc.reporting.summary import summarize


def size(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", png[16:24])


def test_every_picture_of_a_report_is_drawn_in_its_own_size(whole):
    for picture in pictures(summarize(read_records([whole])).studies[0]):
        width, height = size(draw(picture.figure, scale=1.0, width=PIXELS * 6))
        assert (width, height) == (576, pytest.approx(picture.figure.layout.height, abs=1)), picture.title


def test_scale_multiplies_the_pixels_and_svg_is_text():
    figure = go.Figure(layout={"height": 200}).add_scatter(x=[1, 2], y=[1, 2], mode="lines+markers")
    assert size(draw(figure, scale=2.0, width=300)) == (600, 400)
    assert b"<svg" in draw(figure, format="svg")


@pytest.mark.parametrize("name", ["a $x^2 $", "&lt;b&gt;", "日本語", "x" * 300])
def test_names_from_outside_are_drawn_as_text(name):
    figure = go.Figure(layout={"height": 200}).add_scatter(x=[1], y=[1], mode="markers+text", text=[name], name=name)
    assert size(draw(figure, scale=1.0))[1] == 200


def test_a_category_is_drawn_as_it_is_read():
    figure = go.Figure(layout={"height": 200}).add_scatter(x=[1.0, 2.0], y=["R&amp;D", "b"], mode="markers")
    drawn = draw(figure, format="svg")
    assert b"R&amp;D" in drawn  # of SVG's own
    assert b"&amp;amp;" not in drawn


def test_a_figure_without_a_point_is_drawn():
    assert size(draw(go.Figure(layout={"height": 120}), scale=1.0))[1] == 120


def test_bars_that_are_hidden_are_not_drawn():
    def drawn(visible):
        bars = {"type": "data", "array": [1.0, 1.0], "visible": visible}
        return draw(go.Figure(layout={"height": 120}).add_scatter(x=[1, 2], y=[1, 2], error_y=bars), format="svg")

    assert drawn(False).count(b"<path") < drawn(True).count(b"<path")
