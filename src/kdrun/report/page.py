"""The report: one HTML file that opens without a network, on a phone, in the dark and on paper."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from kdrun.controls import CONTROLS
from kdrun.report import table
from kdrun.report.figures import STYLE, Plot, any_script
from kdrun.report.scales import scale_of
from kdrun.statistics.scores import NORMALISED, RECALL, RETURN

CSS = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --soft: #6b6b70; --line: #dcdce0; --good: #00724f;
  --bad: #b34a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --paper: #17171a; --soft: #a0a0a8; --line: #3a3a40;
  --good: #4cc79b; --bad: #ff9d5c; } figure svg { filter: invert(0.9) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h1, h2 { line-height: 1.25; }
p.note, figcaption, td small { color: var(--soft); } figcaption { font-size: 0.85rem; }
ul.verdicts { padding-left: 1.2rem; } .better { color: var(--good); } .worse { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { vertical-align: bottom; } th.text, td.text { text-align: left; }
td.who { position: sticky; left: 0; background: var(--paper); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure svg, figure img { max-width: 100%; height: auto; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: 1.5rem; }
pre { overflow-x: auto; font-size: 0.8rem; border: 1px solid var(--line); padding: 0.8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { display: block; } dt { margin-top: 0.5rem; } .role { display: none; }
  figure svg { max-width: none; width: 34rem; } }
@page { size: A4 landscape; margin: 12mm; }
@media print { body { max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 0.62rem; } th, td { padding: 0.15rem 0.35rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .more { display: none; } h2, h3 { break-after: avoid; } .plots { grid-template-columns: 1fr 1fr; } }
"""


FOUND = (
    "the share of the test samples whose nearest other one, by the cosine of the embeddings that the classifier reads, "
    "is of the same class; all are searched for among all, so what an interval says of test samples holds among these. "
    "What a model says of a sample is the class of that one"
)
"""What the metric of embeddings is."""
MADE_OF = (
    "the finished student of the same seed from which a row starts, and its control, too: its gain is what its method "
    "is worth while the student is made smaller"
)
"""What compressed students are."""
RETURNED = (
    "the sum of an episode's rewards, the mean over evaluation episodes whose seeds are the same for all rows and were "
    "never seen in training; with its interval over resamples of the episodes and, where there are several, of the "
    "seeds. A return may be high where actions are not the teacher's, and low where nearly all of them are"
)
"""What the metric of agents is."""
NORMALISED_RETURN = (
    "the mean over the environments of (return - random) / (teacher - random), by the mean returns of random actions "
    "and of the teacher in the same evaluation episodes, which the protocol has; the return in each stands beside it"
)
EXPLAINED = {RECALL: FOUND, RETURN: RETURNED, NORMALISED: NORMALISED_RETURN}
"""What metrics are that not everybody knows."""
OWN = (
    "the share of the states that the student itself comes to, in its evaluation episodes, in which it does what its "
    "teachers would; those of the test set are a demonstrator's"
)
LEFT_OUT = (
    "the share that is recognised of the test samples of the classes that were left out: of these the students saw no "
    "sample but what a transfer set may hold, and their teachers did"
)
OF_SAMPLES = "of McNemar's exact test, which covers the noise of the test samples only"
OF_EPISODES = (
    "over resamples of the evaluation episodes, and with a p-value by swapping both returns of an episode by chance, "
    "which cover the noise of the episodes only"
)
"""What a gain of one seed has its interval and p-value from."""


class Film(NamedTuple):
    """A recorded episode: whose it is, and the bytes of a GIF."""

    caption: str
    gif: bytes


def page(
    compared: Mapping[str, Any],
    plots: Iterable[Plot],
    provenance: Mapping[str, Mapping[str, Any]],
    configs: Mapping[str, str],
    mixed: bool = False,
    films: Sequence[Film] = (),
) -> str:
    """The report; ``provenance`` and the resolved ``configs``, as text, by experiment."""
    title = escape(compared["name"])
    tables = table.tables(compared, mixed)
    parts = [
        f"<h1>{title}</h1>",
        '<ul class="verdicts">' + "".join(map(_sentence, compared["remarks"])) + "</ul>",
        "<h2>The comparison</h2>",
        *[f'<p class="note">{escape(one.heading)}</p>{_table(*table.cells(one.rows))}' for one in tables],
        *_pairs(compared),
        "<h2>Figures</h2>",
        '<div class="plots">' + "".join(map(_figure, plots)) + "</div>",
        *_films(films),
        "<h2>How to read it</h2>",
        _definitions(_words(compared)),
        "<h2>Where it comes from</h2>",
        *[_origin(name, provenance[name], configs[name]) for name in configs],
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title} – kdrun</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{CSS}</style></head><body>{"".join(parts)}</body></html>\n'
    )


def _sentence(sentence: str) -> str:
    kind = next((one for one in ("better", "worse") if f" is {one} than alone" in sentence), "")
    return f'<li class="{kind}">{escape(sentence)}</li>' if kind else f"<li>{escape(sentence)}</li>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    main = table.main_columns(head)
    kinds = [
        " ".join(
            filter(
                None,
                ["text" * (name in table.TEXT), "role" * (name == "role"), "more" * (name not in main)],
            )
        )
        for name in head
    ]
    top = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell(*of) for of in zip(head, line, kinds, strict=True)) + "</tr>" for line in lines
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, text: str, kind: str) -> str:
    classes = " ".join(filter(None, [kind, "who" * (name == "model"), text if name == "verdict" else ""]))
    return f'<td class="{escape(classes)}">{escape(text)}</td>'


def _pairs(compared: Mapping[str, Any]) -> list[str]:
    if not compared.get("pairs"):
        return []
    return ["<h2>Every two methods</h2>", _table(*table.pair_cells(compared["pairs"]))]


def _figure(plot: Plot) -> str:
    caption = escape(plot.caption)
    drawn = svg(plot).replace("<svg ", f'<svg role="img" aria-label="{escape(plot.caption, quote=True)}" ', 1)
    return f'<figure><div class="wide">{drawn}</div><figcaption>{caption}</figcaption></figure>'


def _films(films: Sequence[Film]) -> list[str]:
    """The episodes, which a reader can fold away who does not want anything to move."""
    shown = []
    for film in films:
        caption, data = escape(film.caption), base64.b64encode(film.gif).decode()
        alt = escape(f"A recording of {film.caption}", quote=True)
        shown.append(
            f'<figure><img alt="{alt}" src="data:image/gif;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    if not shown:
        return []
    told = (
        "an evaluation episode of each teacher, and of each student's first seed; what there is no room for lies "
        "beside its result"
    )
    films_ = f'<div class="films">{"".join(shown)}</div>'
    return ["<h2>Episodes</h2>", f"<details open><summary>{told}</summary>{films_}</details>"]


def svg(plot: Plot) -> str:
    """A figure as an SVG element whose names meet no other's on the page."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with rc_context(STYLE | {"svg.hashsalt": plot.name, "image.composite_image": False}), any_script():
        canvas = FigureCanvasSVG(plot.figure)  # `savefig` would draw everything twice
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)


def _words(compared: Mapping[str, Any]) -> dict[str, str]:
    metrics = dict.fromkeys(row["metric"] for row in compared["rows"])
    methods = {row["method"] for row in compared["rows"]}
    scales = dict.fromkeys(map(scale_of, metrics))
    one_seed = dict.fromkeys(OF_EPISODES if scale.acted else OF_SAMPLES for scale in scales)
    return {
        "score": f"{' or '.join(f'{scale.metric} {scale.where}' for scale in scales)}, scored once, by the weights "
        "that the protocol's selection chose; mean ± standard deviation over n seeds",
        **{metric: what for metric, what in EXPLAINED.items() if metric in metrics},
        "trials": "of `kdrun tune`, on the validation share, that chose the row's values; none where it says nothing",
        "gain": f"over alone, with the interval of a paired t-test over seeds; with one seed {' or '.join(one_seed)}",
        "p, verdict": "two-sided, adjusted for all methods of one student (Holm), at 5 %",
        "seeds needed": "that would tell a difference of this size from none with a power of 80 %",
        "gap closed": "the gain's share of the way from alone to the teachers, with Fieller's interval; n/a where that "
        "way is not clearly positive",
        "agrees, copies errors": "the share of samples on which student and teachers say the same: of the test set, of "
        "the training set, and of the test samples that the teachers have wrong",
        **({"agrees in own states": OWN} if metrics.keys() & {RETURN, NORMALISED} else {}),
        **(
            {"left out": LEFT_OUT}
            if any(row["left_out_recall"] is not None for row in compared["rows"])
            else {}
        ),
        "ECE, scaled": "expected calibration error in 15 bins of equal mass, as it is and after scaling by a "
        "temperature that was fitted on the validation share",
        **({"made of": MADE_OF} if any(row.get("origin") for row in compared["rows"]) else {}),
        "params, MACs, bytes, ms": "of the exported student: no adapter, no teacher; one sample at a time, "
        "on one thread of a processor or on the GPU; of a cascade with as many samples passed on as of the test set",
        "samples/s": "of batches that take about a tenth of a second, there, too; all models are timed in turn",
        "peak bytes": "weights and what is alive at once beside them for one sample, counted and not measured",
        "train s, with teachers": "a student's own steps and its share of its group's data and teachers; and with the "
        "training of its teachers, and of what it is made of",
        **{f"control {name}": what for name, what in CONTROLS.items() if name in methods},
    }


def _definitions(words: Mapping[str, str]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in words.items()) + "</dl>"
    )


def _origin(name: str, provenance: Mapping[str, Any], config: str) -> str:
    shown = {key: " ".join(value) if isinstance(value, list) else value for key, value in provenance.items()}
    return (
        f"<h3>{escape(name)}</h3>{_definitions(shown)}"
        f"<details><summary>the config with every default</summary><pre>{escape(config)}</pre></details>"
    )
