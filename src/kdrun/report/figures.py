"""The figures of a report, drawn by matplotlib: one function each, for the page and for files alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdrun.errors import printable
from kdrun.report.scales import Scale, scale_of
from kdrun.statistics.inference import of_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d1d", "#7f7f7f"]
"""Told apart by colour-blind readers, too; after Okabe, Ito, "Color Universal Design", 2008."""
MARKS = ["o", "s", "D", "^", "v", "P"]
LINES = ["-", "--", ":", "-."]
MOST_PANELS = 12
MOST_CLASSES = 40
MANY_CELLS = 150
"""From so many on a matrix has no numbers in its cells."""
MOST_DOTS = 100
GOLDEN = 0.618034
"""Steps of this size, modulo 1, spread dots evenly, however many there are."""
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kdrun",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


class Plot(NamedTuple):
    """A figure with its file's name, and in words what it shows."""

    name: str
    caption: str
    figure: Figure


class Look(NamedTuple):
    """How one method, or teacher, looks in every figure of a report."""

    colour: str
    mark: str
    line: str


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """A look for each row's method, and for each teacher: other marks and lines where the colours begin anew."""
    names = dict.fromkeys(
        key(row) for row in sorted(rows, key=lambda row: row["role"] in ("teacher", "ensemble"))
    )
    return {
        name: Look(COLOURS[at % len(COLOURS)], MARKS[at // len(COLOURS) % 6], LINES[at // len(COLOURS) % 4])
        for at, name in enumerate(names)
    }


def key(row: Row) -> str:
    """What rows of one look have in common."""
    return str(row["method"] if row["role"] in ("control", "student") else row["model"])


def short(name: str, most: int = 20) -> str:
    """A name that is not longer than that, shortened in the middle, of letters only that can be seen."""
    name = printable(name)
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


@contextmanager
def any_script() -> Iterator[None]:
    """Draw names in the block that matplotlib's font has no letters for, without a word; the reader's may have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ")
        yield


class Margins(NamedTuple):
    """Around the axes of a figure, in inches; reckoned, since to measure every text takes half of the drawing."""

    left: float = 0.65
    bottom: float = 0.5
    right: float = 0.15
    top: float = 0.12


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib as it comes, whatever the user has set for other figures: LaTeX may be missing, or fail."""
    from matplotlib import rc_context, rcdefaults

    with rc_context():
        rcdefaults()
        yield


def new(
    width: float, height: float, margins: Margins, columns: int = 1, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """A figure whose axes take so many inches within their margins, and the axes row by row.

    Several axes share their scales. Nothing global is touched.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    whole = width + margins.left + margins.right, height + margins.bottom + margins.top
    with rc_context(STYLE):
        figure = Figure(figsize=whole)
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    figure.subplots_adjust(
        left=margins.left / whole[0],
        bottom=margins.bottom / whole[1],
        right=1 - margins.right / whole[0],
        top=1 - margins.top / whole[1],
        wspace=0.16,
        hspace=0.24,
    )
    return figure, [one for line in axes for one in line]


def inches(texts: Iterable[str], size: float) -> float:
    """About how wide the longest of some texts is, in letters of so many points."""
    return max((0.6 * size / 72 * len(text) for text in texts), default=0.0)


def legend(figure: Figure, handles: Sequence[Any], texts: Sequence[str]) -> None:
    """A legend right of the axes, for which `beside` leaves room."""
    figure.legend(handles, texts, loc="center right", fontsize=7, frameon=False, borderaxespad=0.2)


def beside(texts: Iterable[str]) -> float:
    """The inches right of the axes that a legend of such texts needs."""
    return 0.55 + inches(texts, 7)


# --------------------------------------------------------------------------------- accuracy against cost


def tradeoffs(rows: Sequence[Row]) -> Iterator[Plot]:
    """Score against multiply-accumulates and against latency, each with the Pareto front."""
    for name, title, cost in (
        ("macs", "multiply-accumulates of one sample", lambda row: row["macs"]),
        ("latency", "latency of one sample, p50 in ms", lambda row: (row["latency_ms"] or {}).get("p50")),
    ):
        shown = [row for row in rows if row["mean"] is not None and cost(row)]
        if len(shown) > 1:
            yield _tradeoff(
                f"score-against-{name}", title, shown, [float(cost(row) or 0) for row in shown], rows
            )


def _tradeoff(
    name: str, title: str, rows: Sequence[Row], costs: Sequence[float], every: Sequence[Row]
) -> Plot:
    from matplotlib.ticker import NullFormatter

    names, scale = [short(label(row), 28) for row in rows], scale_of(rows[0]["metric"])
    figure, [axes] = new(4.4, max(3.6, 0.16 * len(rows)), Margins(right=beside(names)))
    look = looks(every)
    for row, place in zip(rows, _side_by_side(costs), strict=True):
        own = look[key(row)]
        axes.errorbar(
            place,
            scale.factor * row["mean"],
            yerr=_reach(row, scale),
            fmt=own.mark,
            color=own.colour,
            capsize=2,
            lw=1,
            ms=5,
        )
    curves = {key(row): row["curve"] for row in rows if row["curve"]} if name.endswith("macs") else {}
    for of, curve in curves.items():
        heights = [scale.factor * score for score in curve["score"]]
        axes.plot(curve["macs"], heights, color=look[of].colour, lw=0.8, zorder=0)
    front = pareto([(cost, row["mean"]) for row, cost in zip(rows, costs, strict=True)])
    at, heights = [costs[one] for one in front], [scale.factor * rows[one]["mean"] for one in front]
    axes.step(at, heights, "k--", where="post", lw=0.8, zorder=0)
    axes.set_xscale("log")
    if max(costs) >= 5 * min(costs):
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(title)
    axes.set_ylabel(f"{rows[0]['metric']}{scale.unit}")
    legend(figure, axes.containers, names)
    best = ", ".join(label(rows[one]) for one in front)
    whose = ", as the table has it" * scale.acted
    drawn = "; thin lines are cascades at other confidences" * bool(curves)
    return Plot(
        name,
        f"Mean {rows[0]['metric']} against {title}; bars are the 95% interval of its mean{whose}, and what costs the "
        f"same stands side by side{drawn}. On the dashed Pareto front, where nothing is better at that cost: {best}.",
        figure,
    )


def _side_by_side(costs: Sequence[float]) -> list[float]:
    """The costs, those that are equal a little apart."""
    step, seen = 0.012 * max(np.log(max(costs) / min(costs)), 1.0), dict.fromkeys(costs, 0)
    places = []
    for cost in costs:
        places.append(float(cost * np.exp(step * (seen[cost] - (costs.count(cost) - 1) / 2))))
        seen[cost] += 1
    return places


def _reach(row: Row, scale: Scale) -> list[list[float]] | None:
    """How far the interval of a row's mean goes down and up, on its scale and no further than values can."""
    ends = row["interval"] or of_mean(row["values"])
    if ends is None:
        return None
    low, high = np.clip(ends, *scale.bounds)
    return [[scale.factor * max(row["mean"] - low, 0.0)], [scale.factor * max(high - row["mean"], 0.0)]]


def pareto(places: Sequence[tuple[float, float]]) -> list[int]:
    """Of (cost, score) the places that no other beats at that cost or a lower one, cheapest first."""
    found: list[int] = []
    for at in sorted(range(len(places)), key=lambda at: (places[at][0], -places[at][1])):
        if not found or places[at][1] > places[found[-1]][1]:
            found.append(at)
    return found


def label(row: Row) -> str:
    """How a row is called in a figure."""
    return row["model"] if row["method"] is None else f"{row['model']} {row['method']}"


# ------------------------------------------------------------------------------------------------ gains


def gains(rows: Sequence[Row]) -> Iterator[Plot]:
    """Each method's gain over its control, with the interval."""
    shown = [row for row in rows if row["gain"] is not None]
    if not shown:
        return
    names = [short(label(row), 30) for row in reversed(shown)]
    scale = scale_of(shown[0]["metric"])
    figure, [axes] = new(4.4, 0.28 * len(shown) + 0.3, Margins(left=0.2 + inches(names, 9)))
    for place, row in enumerate(reversed(shown)):
        low, high = (scale.factor * end for end in row["gain_interval"])
        tone = {"better": COLOURS[2], "worse": COLOURS[1]}.get(row["verdict"] or "", COLOURS[7])
        axes.plot([low, high], [place, place], color=tone, lw=2, solid_capstyle="round")
        axes.plot(scale.factor * row["gain"], place, "x" if row["role"] == "control" else "o", color=tone)
    axes.axvline(0, color="#444444", lw=0.8)
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel(f"gain over alone{' in' * scale.percent}{scale.points}")
    told = "Gain over alone with its 95% interval; green is better, orange worse, grey neither or a control."
    yield Plot("gains", told, figure)


# ---------------------------------------------------------------------------------------------- returns


class Returned(NamedTuple):
    """Of one method, or teacher, the returns (E,) of all episodes of its seeds, and the share that time cut off."""

    label: str
    returns: np.ndarray
    truncated: float


def returns(title: str, found: Sequence[Returned], name: str, look: Mapping[str, Look]) -> Iterator[Plot]:
    """A line for each: its episodes as dots, their quartiles as a bar, their median and their mean."""
    if not found:
        return
    names = [short(one.label, 28) for one in reversed(found)]
    told = [f"{one.truncated:.0%} cut off" for one in reversed(found)]
    margins = Margins(left=0.2 + inches(names, 9), right=0.2 + inches(told, 8))
    figure, [axes] = new(4.4, 0.36 * len(found) + 0.3, margins)
    for place, one in enumerate(reversed(found)):
        own = look[one.label]
        lower, median, upper = np.quantile(one.returns, [0.25, 0.5, 0.75])
        dots = np.quantile(one.returns, np.linspace(0, 1, min(MOST_DOTS, len(one.returns))), method="nearest")
        heights = place + 0.6 * (np.arange(len(dots)) * GOLDEN % 1 - 0.5)
        axes.scatter(dots, heights, s=7, color=own.colour, alpha=0.45, lw=0)
        axes.plot([lower, upper], [place, place], color=own.colour, lw=4, alpha=0.6, solid_capstyle="butt")
        axes.plot(median, place, "|", color="black", ms=12, mew=1.4)
        axes.plot(one.returns.mean(), place, own.mark, color=own.colour, mec="black", mew=0.8, ms=6)
        axes.text(1.02, place, told[place], transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.set_xlabel("return of an episode")
    some = f"dots are episodes, at most {MOST_DOTS} of a line and evenly from the least return to the most"
    yield Plot(
        name,
        f"{title}Returns of the evaluation episodes of all seeds: {some}; the bar reaches from the first quartile to "
        "the third, with the median as a stroke and the mean as a mark. At the right the share of episodes that were "
        "cut off by the time limit; the others came to an end of their own.",
        figure,
    )


# ----------------------------------------------------------------------------------------------- curves


def curves(
    title: str,
    found: Sequence[tuple[str, np.ndarray]],
    what: str,
    name: str,
    look: Mapping[str, Look],
    missing: str = "",
) -> Iterator[Plot]:
    """A line for each method, the mean over seeds (S, E), in a band from the least to the most."""
    from matplotlib.ticker import MaxNLocator

    if not found:
        return
    names = [short(method, 28) for method, _ in found]
    figure, [axes] = new(4.4, max(3.2, 0.16 * len(found)), Margins(right=beside(names)))
    for method, values in found:
        epochs, own = np.arange(1, values.shape[1] + 1), look[method]
        middle, ends = values.mean(axis=0), (values.min(axis=0), values.max(axis=0))
        axes.plot(epochs, middle, own.line, color=own.colour, lw=1.4)
        axes.fill_between(epochs, *ends, color=own.colour, alpha=0.18, lw=0)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(what)
    legend(figure, axes.lines, names)
    told = f"{what.capitalize()} by epoch: the mean over seeds, in a band from the least to the most"
    yield Plot(name, f"{title}{told}{missing}.", figure)


def shares(title: str, found: Mapping[str, Mapping[str, Mapping[int, float]]], name: str) -> Iterator[Plot]:
    """Of each method a panel: its terms' shares in the gradient's norm, by epoch."""
    shown = dict(list(found.items())[:MOST_PANELS])
    if not any(len(by_epoch) > 1 for of_method in shown.values() for by_epoch in of_method.values()):
        return  # a single epoch is no curve; the log has it
    terms = list(dict.fromkeys(term for of_method in shown.values() for term in of_method))
    figure, panels = _panels(shown, "epoch", "share in %", right=beside(map(short, terms)))
    drawn: dict[str, Any] = {}
    for axes, of_method in zip(panels, shown.values(), strict=False):
        for term, by_epoch in of_method.items():
            at = terms.index(term)
            heights = [100 * share for share in by_epoch.values()]
            tone, line = COLOURS[at % len(COLOURS)], f"o{LINES[at // len(COLOURS) % 4]}"
            drawn[term], *_ = axes.plot(list(by_epoch), heights, line, ms=3, lw=1.2, color=tone)
        axes.set_ylim(-3, 103)
    legend(figure, list(drawn.values()), [short(term) for term in drawn])
    yield Plot(
        name,
        f"{title}What each weighted term contributes to the gradient of the student's weights: the share of its norm "
        f"in the sum of all terms' norms, measured in some epochs, the mean over seeds{_cut(found)}.",
        figure,
    )


def _panels(shown: Iterable[str], below: str, beside: str, right: float = 0.15) -> tuple[Figure, list[Axes]]:
    """A figure with a panel under each title, on scales that all share, and what they are."""
    titles = list(shown)
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    margins = Margins(left=0.8, bottom=0.6, right=right, top=0.3)
    figure, panels = new(1.6 * columns, 1.7 * rows, margins, columns, rows)
    for number, axes in enumerate(panels):
        axes.set_visible(number < len(titles))
        axes.tick_params(labelbottom=number + columns >= len(titles))
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(short(title, 22), fontsize=8)
    figure.supxlabel(below, fontsize=9)
    figure.supylabel(beside, fontsize=9)
    return figure, panels


def _cut(found: Mapping[str, Any]) -> str:
    return f"; the first {MOST_PANELS} of {len(found)}" if len(found) > MOST_PANELS else ""


# -------------------------------------------------------------------------------------- classes, matrices


def by_class(
    title: str, labels: Sequence[str], classes: Sequence[str], found: np.ndarray, name: str
) -> Iterator[Plot]:
    """Gains in points of each method (M) in each class (C); of many classes those in which most is gained or lost."""
    if not len(labels):
        return
    chosen = np.arange(len(classes))
    if len(classes) > MOST_CLASSES:
        most = np.nan_to_num(np.abs(found)).max(axis=0)
        chosen = np.sort(np.argsort(-most, kind="stable")[:MOST_CLASSES])
    shown = found[:, chosen]
    reach = float(np.nanmax(np.abs(shown), initial=0.1))
    picture = Matrix(shown, labels, [classes[int(at)] for at in chosen], "PuOr", (-reach, reach), "+.0f")
    part = f" (the {MOST_CLASSES} classes with the largest)" if len(classes) > MOST_CLASSES else ""
    told = f"{title}Gain over alone in points in each class{part}: violet is more, orange less."
    yield Plot(name, told, picture.draw())


def agreement(title: str, labels: Sequence[str], found: np.ndarray, name: str) -> Iterator[Plot]:
    """The share of test samples on which each two of M models say the same, (M, M)."""
    if len(labels) < 2:
        return
    picture = Matrix(100 * found, labels, labels, "Blues", (100 * float(found.min()), 100.0), ".0f")
    yield Plot(
        name, f"{title}Share of the test samples, in %, on which each two say the same.", picture.draw()
    )


class Matrix(NamedTuple):
    """Numbers (R, C) as colours, and as figures where there is room."""

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    colours: str
    ends: tuple[float, float]
    form: str

    def draw(self) -> Figure:
        """The figure."""
        below, beside = list(map(short, self.columns)), list(map(short, self.rows))
        margins = Margins(0.2 + inches(beside, 9), 0.25 + 0.72 * inches(below, 9), top=0.12)
        figure, [axes] = new(0.42 * len(self.columns), 0.3 * len(self.rows), margins)
        low, high = self.ends
        axes.imshow(self.values, cmap=self.colours, vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        axes.grid(visible=False)
        axes.set_xticks(range(len(below)), below, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(beside)), beside, parse_math=False)
        if self.values.size <= MANY_CELLS:
            for (row, column), value in np.ndenumerate(self.values):
                share = (value - low) / max(high - low, 1e-9)
                dark = share > 0.7 if self.colours == "Blues" else abs(share - 0.5) > 0.35
                axes.text(
                    column, row, f"{value:{self.form}}" if np.isfinite(value) else "",
                    ha="center", va="center", fontsize=7, color="white" if dark else "black",
                )  # fmt: skip
        return figure


# ------------------------------------------------------------------------------------------- reliability


def reliability(
    title: str, found: Mapping[str, Sequence[Sequence[float]]], name: str, look: Mapping[str, Look]
) -> Iterator[Plot]:
    """Accuracy against confidence, a panel for each model: on the diagonal a model is as right as it is sure."""
    shown = dict(list(found.items())[:MOST_PANELS])
    if not shown:
        return
    figure, panels = _panels(shown, "confidence", "accuracy")
    for axes, (label_, bins) in zip(panels, shown.items(), strict=False):
        counts, sure, right = np.array(bins).T
        axes.plot([0, 1], [0, 1], color="#888888", lw=0.8, ls="--")
        axes.plot(sure, right, color=look[label_].colour, lw=1)
        axes.scatter(sure, right, s=4 + 60 * counts / counts.sum(), color=look[label_].colour, alpha=0.8)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.02)
    yield Plot(
        name,
        f"{title}Reliability: accuracy of the test samples against the confidence in them, in 15 bins; the larger a "
        f"point, the more samples; below the diagonal a model is surer than it is right{_cut(found)}.",
        figure,
    )
