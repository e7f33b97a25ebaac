"""Charts as inline SVG, without scripts and without styles of their own: colours and fonts are the page's classes.

A chart is built as a tree and written as text at the end, so that nothing in it can break out of its element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH, HEIGHT = 560.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 34.0, 48.0


@dataclass(frozen=True)
class Axis:
    """One axis: what it shows, its ends, and where its marks are.

    Attributes:
        label: The quantity, in words.
        low: The lower end.
        high: The upper end, above ``low``.
        ticks: The marks: values with their texts.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    @staticmethod
    def over(label: str, values: Sequence[float], *, low: float | None = None, high: float | None = None) -> Axis:
        """Return an axis that holds all finite ``values`` and has marks at round numbers; ``low`` and ``high`` fix its ends."""
        finite = [value for value in values if math.isfinite(value)]
        first = min(finite, default=0.0) if low is None else low
        last = max(finite, default=1.0) if high is None else high
        if not last > first:
            pad = abs(first) * 0.05 or 0.5
            first, last = (first if low is not None else first - pad), last + pad
        step = _round_step((last - first) / 5)
        if low is None:
            first = math.floor(first / step + 1e-9) * step
        if high is None:
            last = math.ceil(last / step - 1e-9) * step
        count = math.floor((last - first) / step + 1e-6)
        start = math.ceil(first / step - 1e-9)
        marks = [(start + i) * step for i in range(count + 1) if (start + i) * step <= last + 1e-9 * step]
        return Axis(label, first, last, tuple((mark, f"{mark:.6g}") for mark in marks))


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        name: What stands in the legend; empty for none.
        points: (x, y) from left to right.
        style: A class of the page, such as "after" or "before".
        line: Whether a line joins the points.
        dots: Whether each point has a dot.
        bars: For each point the lower and the upper end of its interval; empty for none.
        labels: For each point a text beside it; empty for none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    line: bool = True
    dots: bool = False
    bars: Sequence[tuple[float, float]] = ()
    labels: Sequence[str] = ()


def plot(name: str, title: str, description: str, axes: tuple[Axis, Axis], series: Sequence[Series]) -> str:
    """Return a plot of points over two axes as SVG text.

    Args:
        name: What ids in the page begin with; letters, digits and hyphens.
        title: What the plot is called where it is read aloud.
        description: What is to be seen in it, in a sentence.
        axes: The axis from left to right and the one from bottom to top.
        series: What is drawn, the last one on top.
    """
    across, upward = axes
    svg = _picture(name, title, description, HEIGHT)

    def x(value: float) -> float:
        return LEFT + (value - across.low) / (across.high - across.low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - upward.low) / (upward.high - upward.low) * (HEIGHT - TOP - BOTTOM)

    for value, text in upward.ticks:
        _line(svg, (LEFT, y(value)), (WIDTH - RIGHT, y(value)), "grid")
        _text(svg, LEFT - 8, y(value) + 4, text, "end")
    for value, text in across.ticks:
        _line(svg, (x(value), HEIGHT - BOTTOM), (x(value), HEIGHT - BOTTOM + 5), "axis")
        _text(svg, x(value), HEIGHT - BOTTOM + 19, text, "middle")
    _line(svg, (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM), "axis")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, across.label, "middle")
    _text(svg, LEFT - 52, 16, upward.label, "start")
    _legend(svg, series)
    for one in series:
        _draw(svg, one, [(x(across_), y(upward_)) for across_, upward_ in one.points], y)
    return tostring(svg, encoding="unicode")


def bar(name: str, title: str, description: str, pieces: Sequence[tuple[str, float]], total: float) -> str:
    """Return one horizontal bar of pieces, from left to right, as SVG text.

    Args:
        name: What ids in the page begin with.
        title: What the bar is called where it is read aloud.
        description: What is to be seen in it, in a sentence.
        pieces: The class of each piece and its size; what does not fit ``total`` is cut off.
        total: What the whole bar stands for, above 0.
    """
    svg, place = _picture(name, title, description, 40.0), 0.0
    _box(svg, 1, 4, WIDTH - 2, 32, "left")
    for style, size in pieces:
        length = min(max(size, 0.0), total - place)
        _box(svg, 1 + place / total * (WIDTH - 2), 4, length / total * (WIDTH - 2), 32, style)
        place += length
    _box(svg, 1, 4, WIDTH - 2, 32, "frame")
    return tostring(svg, encoding="unicode")


def rows(name: str, title: str, description: str, values: Sequence[tuple[str, float, str]]) -> str:
    """Return horizontal bars, one below the other, as SVG text.

    Args:
        name: What ids in the page begin with.
        title: What the bars are called where they are read aloud.
        description: What is to be seen in them, in a sentence.
        values: For each bar its label, its size of 0 or more, and the text at its end.
    """
    svg = _picture(name, title, description, 28.0 * len(values) + 4)
    largest = max((size for _, size, _ in values), default=0.0) or 1.0
    for number, (label, size, text) in enumerate(values):
        top = 28.0 * number + 4
        length = size / largest * (WIDTH - 240)
        _text(svg, 104, top + 15, label, "end")
        _box(svg, 112, top, max(length, 1.0), 20, "after")
        _text(svg, 120 + max(length, 1.0), top + 15, text, "start")
    return tostring(svg, encoding="unicode")


def _picture(name: str, title: str, description: str, height: float) -> Element:
    svg = Element(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH:g} {height:g}",
            "width": f"{WIDTH:g}",
            "height": f"{height:g}",
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-description",
        },
    )
    SubElement(svg, "title", {"id": f"{name}-title"}).text = title
    SubElement(svg, "desc", {"id": f"{name}-description"}).text = description
    return svg


def _draw(svg: Element, one: Series, places: Sequence[tuple[float, float]], y: Callable[[float], float]) -> None:
    shown = [(x, height) for x, height in places if math.isfinite(x) and math.isfinite(height)]
    if one.line and len(shown) > 1:
        joined = " ".join(f"{x:.2f},{height:.2f}" for x, height in shown)
        SubElement(svg, "polyline", {"points": joined, "class": f"line {one.style}"})
    for (x, _), (low, high) in zip(places, one.bars, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            _line(svg, (x, y(low)), (x, y(high)), f"line {one.style}")
    if one.dots or not one.line or len(shown) == 1:
        for x, height in shown:
            SubElement(svg, "circle", {"cx": f"{x:.2f}", "cy": f"{height:.2f}", "r": "4", "class": f"dot {one.style}"})
    for (x, height), text in zip(places, one.labels, strict=False):
        anchor, shift = ("end", -8) if x > WIDTH * 0.7 else ("start", 8)
        _text(svg, x + shift, height - 8, text, anchor)


def _legend(svg: Element, series: Sequence[Series]) -> None:
    place = WIDTH - RIGHT
    for one in reversed([one for one in series if one.name]):
        place -= 7.0 * len(one.name)
        _text(svg, place, 16, one.name, "start")
        if one.line:
            _line(svg, (place - 28, 12), (place - 6, 12), f"line {one.style}")
        else:
            SubElement(svg, "circle", {"cx": f"{place - 14:g}", "cy": "12", "r": "4", "class": f"dot {one.style}"})
        place -= 44


def _line(svg: Element, first: tuple[float, float], last: tuple[float, float], style: str) -> None:
    ends = {"x1": first[0], "y1": first[1], "x2": last[0], "y2": last[1]}
    SubElement(svg, "line", {name: f"{value:.2f}" for name, value in ends.items()} | {"class": style})


def _box(svg: Element, x: float, y: float, width: float, height: float, style: str) -> None:
    sides = {"x": x, "y": y, "width": width, "height": height}
    SubElement(svg, "rect", {name: f"{value:.2f}" for name, value in sides.items()} | {"class": style})


def _text(svg: Element, x: float, y: float, text: str, anchor: str) -> None:
    SubElement(svg, "text", {"x": f"{x:.2f}", "y": f"{y:.2f}", "text-anchor": anchor}).text = text


def _round_step(width: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not much above ``width``."""
    power = 10.0 ** math.floor(math.log10(width))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))
