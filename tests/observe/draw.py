"""A run as a picture: the dashboard's panels in their places, with what Prometheus answered."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from ipvs_node_agent import __version__
from tests.observe.dashboard import COLUMNS, Panel
from tests.observe.prometheus import Points
from tests.observe.scene import Drawn, Run

_COLUMN, _ROW, _GAP = 50, 28, 8
_HEAD, _LINE = 64, 16
_WIDTH = COLUMNS * _COLUMN
_LETTER = 6.1
_COLOURS = (
    *("#3274d9", "#e0752d", "#56a64b", "#8f3bb8", "#c4162a"),
    *("#0ea5a5", "#b58900", "#d05ba5", "#5f6b7a", "#7a4b2a"),
)
_NAMED = {"red": "#c4162a", "green": "#37872d", "orange": "#d9730d", "blue": "#1f60c4"}
_INK, _FAINT, _BACK, _PAPER = "#24292f", "#6e7781", "#f4f5f5", "#ffffff"
_FONT = "font-family=\"'DejaVu Sans', Verdana, sans-serif\""


class Box(NamedTuple):
    """A rectangle of the picture."""

    x: float
    y: float
    width: float
    height: float


def draw(run: Run) -> str:
    """The picture as SVG."""
    rows = max(panel.y + panel.height for panel, _ in run.panels)
    below = _HEAD + rows * _ROW
    height = below + (len(run.moments) + 1) // 2 * _LINE + _LINE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' {_FONT} font-size="11" fill="{_INK}">',
        "<title>The dashboard of ipvs-node-agent, as a real run made it</title>",
        _rect(Box(0, 0, _WIDTH, height), _BACK),
        *_head(run),
    ]
    for panel, series in run.panels:
        box = Box(
            panel.x * _COLUMN + _GAP / 2,
            _HEAD + panel.y * _ROW + _GAP / 2,
            panel.width * _COLUMN - _GAP,
            panel.height * _ROW - _GAP,
        )
        parts += [_rect(box, _PAPER, 'stroke="#d8d9da" rx="2"')]
        parts += [_text(box.x + 10, box.y + 18, panel.title, 'font-weight="bold"')]
        if panel.kind == "stat":
            parts += _stat(panel, series, box)
        elif panel.kind == "table":
            parts += _table(series, box, run)
        else:
            parts += _graph(panel, series, box, run)
    parts += _moments(run, below)
    return "\n".join([*parts, "</svg>", ""])


def _head(run: Run) -> Iterator[str]:
    day = time.strftime("%Y-%m-%d", time.gmtime(run.start))
    yield _text(12, 28, "The dashboard of ipvs-node-agent", 'font-size="18" font-weight="bold"')
    yield _text(
        12,
        50,
        f"A real run of {_clock(run.end - run.start)} min on {day}: version {__version__} on three"
        f" nodes (network namespaces), scraped every {run.step:g} s. Times are minutes from the"
        " start; the small numbers are explained below.",
        f'fill="{_FAINT}"',
    )


def _moments(run: Run, top: float) -> Iterator[str]:
    half = (len(run.moments) + 1) // 2
    for place, moment in enumerate(run.moments):
        x = 12 + place // half * _WIDTH / 2
        since = _clock(moment.time - run.start)
        yield _text(x, top + (place % half + 1) * _LINE, f"{place + 1}  {since}  {moment.what}")


def _stat(panel: Panel, series: Sequence[Drawn], box: Box) -> Iterator[str]:
    share = (box.width - 20) / len(series)
    for place, each in enumerate(series):
        value = each.points[-1][1]
        colour = [name for least, name in panel.steps if value >= least][-1]
        shown = panel.words.get(value) or _shown(value, panel.unit)
        x = box.x + 10 + place * share
        look = f'font-size="{min(28.0, 1.5 * share / len(shown)):.0f}" fill="{_NAMED[colour]}"'
        yield _text(x, box.y + box.height - 34, shown, look)
        yield _text(x, box.y + box.height - 12, each.name, f'fill="{_FAINT}"')


def _table(series: Sequence[Drawn], box: Box, run: Run) -> Iterator[str]:
    """Who was in it and when, as many as there is room for in two columns."""
    rows = int((box.height - 34) / _LINE)
    for place, each in enumerate(series[: 2 * rows]):
        x = box.x + 10 + place // rows * box.width / 2
        times = ", ".join(
            f"{_clock(stretch[0][0] - run.start)} to {_clock(stretch[-1][0] - run.start)}"
            for stretch in list(_stretches(each.points, run.step))[:4]
        )
        y = box.y + 38 + place % rows * _LINE
        yield _text(x, y, f"{each.name.strip()}  ({times})")


def _graph(panel: Panel, series: Sequence[Drawn], box: Box, run: Run) -> Iterator[str]:
    series = [finite for finite in map(_finite, series) if finite.points]
    legend = list(_legend(series, box))
    inside = Box(box.x + 62, box.y + 30, box.width - 76, box.height - 52 - legend[-1][1] - _LINE)
    scale = _Scale(inside, run, panel, series)
    yield from _grid(panel, scale, run)
    floor: defaultdict[float, float] = defaultdict(float)
    for place, each in enumerate(series):
        colour = _COLOURS[place % len(_COLOURS)]
        if panel.bars:
            yield f'<path fill="{colour}" d="{_bars(each, scale, floor)}"/>'
        else:
            yield from _lines(each, scale, colour)
    base = box.y + box.height - 10 - legend[-1][1]
    for place, (x, y, name) in enumerate(legend):
        colour = _COLOURS[place % len(_COLOURS)]
        yield _rect(Box(x, base + y - 7, 10, 4), colour)
        yield _text(x + 14, base + y - 2, name)


def _legend(series: Sequence[Drawn], box: Box) -> Iterator[tuple[float, float, str]]:
    """Where each name is, as many in a line as there is room for."""
    x, y = box.x + 10, 0.0
    for each in series:
        width = 26 + _LETTER * len(each.name)
        if x + width > box.x + box.width and x > box.x + 10:
            x, y = box.x + 10, y + _LINE
        yield x, y, each.name
        x += width


class _Scale:
    """Where a time and a value are."""

    def __init__(self, inside: Box, run: Run, panel: Panel, series: Sequence[Drawn]) -> None:
        self.inside, self.step = inside, run.step
        self._start, self.length = run.start, run.end - run.start
        values = list(_heights(panel, series))
        top = 1.05 * max(values) or 1.0
        self._logarithmic = panel.logarithmic
        if panel.logarithmic:
            low, high = math.log10(min(filter(None, values))), math.log10(top)
            self.ticks = [10.0**power for power in range(math.floor(low), math.ceil(high) + 1)]
        else:
            # Memory in the units that it is counted in.
            unit = float(1 << 20) if panel.unit == "bytes" else 1.0
            step = _nice(top / unit / 4) * unit
            self.ticks = [number * step for number in range(math.ceil(top / step) + 1)]

    def x(self, moment: float) -> float:
        """Where a time is, in seconds since the epoch."""
        return self.inside.x + (moment - self._start) / self.length * self.inside.width

    def y(self, value: float) -> float:
        """Where a value is; those below the scale are at its foot."""
        low, high = self.ticks[0], self.ticks[-1]
        value = min(max(value, low), high)
        if self._logarithmic:
            low, high, value = map(math.log10, (low, high, value))
        return self.inside.y + self.inside.height * (1 - (value - low) / (high - low))


def _heights(panel: Panel, series: Sequence[Drawn]) -> Iterable[float]:
    if not panel.bars:
        return (value for each in series for _, value in each.points)
    sums: defaultdict[float, float] = defaultdict(float)
    for each in series:
        for moment, value in each.points:
            sums[moment] += value
    return sums.values()


def _grid(panel: Panel, scale: _Scale, run: Run) -> Iterator[str]:
    inside = scale.inside
    foot = inside.y + inside.height
    for tick in scale.ticks:
        y = scale.y(tick)
        yield _line(inside.x, y, inside.x + inside.width, y, "#e4e5e6")
        look = f'fill="{_FAINT}" text-anchor="end"'
        yield _text(inside.x - 6, y + 4, _shown(tick, panel.unit), look)
    seconds = _nice(scale.length / 6, (1, 2, 3, 6))
    for number in range(int(scale.length / seconds) + 1):
        x = scale.x(run.start + number * seconds)
        look = f'fill="{_FAINT}" text-anchor="middle"'
        yield _text(x, foot + 14, _clock(number * seconds), look)
    for place, moment in enumerate(run.moments):
        x = scale.x(moment.time)
        yield _line(x, inside.y - 2, x, foot, "#c9d1d9", 'stroke-dasharray="2 3"')
        look = f'font-size="8" fill="{_FAINT}" text-anchor="middle"'
        yield _text(x, inside.y - 4, str(place + 1), look)


def _lines(series: Drawn, scale: _Scale, colour: str) -> Iterator[str]:
    """Lines as far as there are values, and dots where one stands alone."""
    path, alone = [], []
    for stretch in _stretches(series.points, scale.step):
        places = _bends([(scale.x(moment), scale.y(value)) for moment, value in stretch])
        if len(places) == 1:
            alone.append(places[0])
        path.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places))
    yield f'<path fill="none" stroke="{colour}" stroke-width="1.3" d="{"".join(path)}"/>'
    for x, y in alone:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{colour}"/>'


def _bars(series: Drawn, scale: _Scale, floor: defaultdict[float, float]) -> str:
    """A bar for each value, upon those of the series before."""
    width = scale.inside.width * scale.step / scale.length
    path = []
    for moment, value in series.points:
        low, high = scale.y(floor[moment]), scale.y(floor[moment] + value)
        floor[moment] += value
        path.append(
            f"M{scale.x(moment) - width / 2:.1f} {low:.1f}V{high:.1f}h{width:.1f}V{low:.1f}z"
        )
    return "".join(path)


def _finite(series: Drawn) -> Drawn:
    return series._replace(points=tuple(each for each in series.points if math.isfinite(each[1])))


def _stretches(points: Points, step: float) -> Iterable[Sequence[tuple[float, float]]]:
    """The points, anew where one or more are missing."""
    stretches = [[points[0]]]
    for before, point in zip(points, points[1:]):
        if point[0] - before[0] > 1.5 * step:
            stretches.append([])
        stretches[-1].append(point)
    return stretches


def _bends(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The places without those in the midst of a level line."""
    inner = zip(places, places[1:], places[2:])
    kept = [here for before, here, after in inner if not before[1] == here[1] == after[1]]
    return [places[0], *kept, *([places[-1]] if len(places) > 1 else [])]


def _nice(least: float, steps: Sequence[float] = (1, 2, 5)) -> float:
    """The first round number that is no less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((step * power for step in steps if step * power >= least - 1e-9), 10 * power)


def _shown(value: float, unit: str) -> str:
    if unit == "s":
        for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
            if value >= 2 * size or size == value == 1.0:
                return f"{value / size:.3g} {name}"
        return f"{value * 1000:.3g} ms" if value else "0"
    if unit == "bytes":
        return f"{value / (1 << 20):.4g} MiB" if value else "0"
    return f"{value:,.6g}" + {"opm": " /min", "cps": " /s"}.get(unit, "")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _rect(box: Box, fill: str, more: str = "") -> str:
    place = f'x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}"'
    return f'<rect {place} fill="{fill}" {more}/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" {more}/>'


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'
