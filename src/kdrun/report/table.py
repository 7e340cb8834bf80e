"""The table of a comparison: as cells, in Markdown, as CSV, in LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kdrun.controls import MATCHED
from kdrun.report.scales import OF_NORMALISED, OF_RETURNS, scale_of, shown_zero
from kdrun.report.words import CONFIDENCE
from kdrun.statistics.returns import IN

Row = Mapping[str, Any]

PROTOCOL = {
    "dataset": "{}",
    "setting": "{}",
    "test_sha256": "test data {:.8}",
    "input": "input {}",
    "train_samples": "{} training samples",
    "labels_per_class": "{} labels a class",
    "transfer_samples": "{} transfer samples",
    "left_out": "left out: {}",
    "unseen": "unseen in training: {}",
    "epochs": "{} epochs",
    "selection": "{} weights",
    "precision": "{}",
}
"""What the rows of one table have in common, and how each is said."""
BY_DESIGN = {MATCHED}
"""The controls whose protocol differs because that is what they are for."""
STUDENTS = ("control", "student")
"""The roles of rows that are compared; the others are there to compare with."""


class Table(NamedTuple):
    """Rows that stand together, and what they have in common in a line."""

    heading: str
    rows: Sequence[Row]


def tables(compared: Mapping[str, Any], mixed: bool = False) -> list[Table]:
    """The rows in tables of one protocol each, or all in one where ``mixed`` asks for it.

    Teachers stand in every table that has students of their experiment.
    """
    groups: dict[Any, list[Row]] = {}
    for row in compared["rows"]:
        if row["role"] in STUDENTS:
            groups.setdefault(None if mixed else _protocol(row, compared["rows"]), []).append(row)
    found = []
    for group in groups.values():
        experiments = {(row["experiment"], row.get("environment")) for row in group}
        references = [
            row
            for row in compared["rows"]
            if row["role"] not in STUDENTS and (row["experiment"], row.get("environment")) in experiments
        ]
        found.append(Table(heading(compared["name"], group), references + group))
    return found or [Table(heading(compared["name"], compared["rows"]), compared["rows"])]


def _protocol(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """What decides the table in which a row stands: its own protocol, or that of its kin where it has none yet."""
    kin = [
        one["protocol"]
        for one in (row, *rows)
        if one["protocol"]
        and one["role"] in STUDENTS
        and one["method"] not in BY_DESIGN
        and (one["experiment"], one["model"]) == (row["experiment"], row["model"])
    ]
    return (row["metric"], *(str(kin[0].get(key)) for key in PROTOCOL)) if kin else (row["metric"],)


def heading(name: str, rows: Sequence[Row]) -> str:
    """What was compared under which protocol, in a line; of several protocols, what they share."""
    shared = _shared_protocol(rows)
    if not shared:
        return name
    scales = list(dict.fromkeys(scale_of(row["metric"]) for row in rows))
    metric = " or ".join(scale.metric for scale in scales)
    cases = " or ".join(dict.fromkeys(scale.cases for scale in scales))
    words = [f"{shared['test_samples']} {cases}"] if "test_samples" in shared else []
    words += [said(key, shared[key]) for key in PROTOCOL if shared.get(key) is not None]
    return f"{name}: {metric} on {', '.join(words)}; mean ± std over n seeds"


def _shared_protocol(rows: Sequence[Row]) -> dict[str, Any]:
    """What the protocols of all rows that may not differ say alike; of the students', where there are any."""
    known = [row for row in rows if row["protocol"] and row["method"] not in BY_DESIGN]
    own = [row["protocol"] for row in known if row["role"] in STUDENTS] or [row["protocol"] for row in known]
    return {
        key: value
        for key, value in (own[0] if own else {}).items()
        if all(one.get(key) == value for one in own)
    }


def said(key: str, value: Any) -> str:
    """A part of a protocol in words."""
    shown = "×".join(map(str, value)) if isinstance(value, list) else value
    return PROTOCOL[key].format(shown)


# -------------------------------------------------------------------------------------------- columns


def _percent(value: float | None, digits: int = 2) -> str:
    """A share, of whatever metric the row is."""
    return "" if value is None else f"{shown_zero(100 * value, digits):.{digits}f}"


def _score_by(column: str) -> Callable[[Row], str]:
    """What a column of scores shows of a row: its score if it is of that kind."""

    def shown(row: Row) -> str:
        scale = scale_of(row["metric"])
        if scale.column != column:
            return ""
        if row["mean"] is None:
            return str(row["status"])
        spread = f" ± {scale.shown(row['std'])}" if row["std"] is not None else ""
        part = "" if row["status"] == "finished" else f" ({row['status']})"
        return scale.shown(row["mean"]) + spread + part

    return shown


def _score_interval_by(column: str) -> Callable[[Row], str]:
    """What a column shows of the interval of a score of its kind."""
    interval = _interval_of("interval")
    return lambda row: interval(row) if scale_of(row["metric"]).column == column else ""


def _return_in(environment: str) -> Callable[[Row], str]:
    """What a column shows of the mean return in one of several environments."""

    def shown(row: Row) -> str:
        value = (row.get("returns") or {}).get(environment)
        return "" if value is None else OF_RETURNS.shown(value)

    return shown


def _gain(row: Row) -> str:
    return "" if row["gain"] is None else scale_of(row["metric"]).shown(row["gain"], "+")


def _interval_of(key: str, sign: str = "") -> Callable[[Row], str]:
    """What a column shows of an interval that a row may have."""
    return lambda row: scale_of(row["metric"]).interval(row[key], sign) if row.get(key) else ""


def _count(value: float | None) -> str:
    if value is None:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _latency(row: Row) -> str:
    times = row["latency_ms"]
    return f"{times['p50']:.3g} / {times['p95']:.3g}" if times else ""


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _who(row: Row) -> str:
    return row["model"] if row["method"] is None else f"{row['model']} {row['method']}"


def _p_value(row: Row) -> str:
    if row["p_value"] is None:
        return ""
    return "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}"


def _gap(row: Row) -> str:
    if row["gap_closed"] is None:
        return "n/a" if row["gain"] is not None and row["teacher"] else ""
    ends = row["gap_interval"]
    return _percent(row["gap_closed"], 0) + (
        f" [{', '.join(_percent(end, 0) for end in ends)}]" if ends else ""
    )


RETURN_COLUMN, NORMALISED_COLUMN = OF_RETURNS.column, OF_NORMALISED.column
OWN_STATES = "agrees in own states %"
COLUMNS: dict[str, Callable[[Row], str]] = {
    "role": lambda row: row["role"],
    "model": _who,
    "made of": lambda row: row.get("origin") or "",
    "experiment": lambda row: row["experiment"],
    "teacher": lambda row: row["teacher"] or "",
    "n": lambda row: str(len(row["values"] or [])),
    "trials": lambda row: str(row["tuning_trials"] or ""),
    "score %": _score_by("score %"),
    **{
        column: show
        for scale in (OF_RETURNS, OF_NORMALISED)
        for column, show in (
            (scale.column, _score_by(scale.column)),
            (f"{scale.column}, {CONFIDENCE}", _score_interval_by(scale.column)),
        )
    },
    "gain": _gain,
    f"gain, {CONFIDENCE}": _interval_of("gain_interval", "+"),
    "resampled": _interval_of("bootstrap_interval", "+"),
    "p": _p_value,
    "verdict": lambda row: row["verdict"] or "",
    "seeds needed": lambda row: str(row["seeds_needed"] or ""),
    "gap closed %": _gap,
    "agrees %": lambda row: _percent(row["agreement"], 1),
    "agrees in training %": lambda row: _percent(row["agreement_train"], 1),
    OWN_STATES: lambda row: _percent(row["agreement_own"], 1),
    "copies errors %": lambda row: _percent(row["copied_errors"], 1),
    "left out %": lambda row: _percent(row["left_out_recall"], 1),
    "NLL": lambda row: "" if row["nll"] is None else f"{row['nll']:.3f}",
    "ECE %": lambda row: _percent(row["ece"], 1),
    "scaled": lambda row: _percent(row["ece_scaled"], 1),
    "params": lambda row: _count(row["parameters"]),
    "MACs": lambda row: _count(row["macs"]),
    "bytes": lambda row: _count(row["bytes"]),
    "ms p50 / p95": _latency,
    "samples/s": lambda row: _count(row["throughput"]),
    "peak bytes": lambda row: _count(row["peak_memory_bytes"]),
    "train s": lambda row: _seconds(row["train_seconds"]),
    "with teachers": lambda row: _seconds(row["train_seconds_all"]),
}


MAIN = {
    "role", "model", "made of", "experiment", "teacher", "n", "trials", "score %", RETURN_COLUMN,
    f"{RETURN_COLUMN}, {CONFIDENCE}", NORMALISED_COLUMN, f"{NORMALISED_COLUMN}, {CONFIDENCE}", "gain",
    f"gain, {CONFIDENCE}", "p", "verdict", "seeds needed", "gap closed %", "left out %", "params", "ms p50 / p95",
    "protocol",
}  # fmt: skip
"""The columns that a terminal and a page have room for."""
OF_AGENTS = {"agrees %", OWN_STATES}
BESIDE = {"made of": {"bytes"}, RETURN_COLUMN: OF_AGENTS, NORMALISED_COLUMN: OF_AGENTS}
"""What belongs beside some of them: what is made of another is smaller, and an agent may do as its teacher and fail."""


def main_columns(shown: Collection[str]) -> set[str]:
    """The main ones of the columns that are ``shown``."""
    in_one = {name for name in shown if name.startswith(IN)}
    return MAIN.union(in_one, *(columns for name, columns in BESIDE.items() if name in shown))


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """The columns, with the return in each environment where one of the rows is of several."""
    several = [row["returns"] for row in rows if row.get("returns") and row.get("environment") is None]
    each = {
        f"{IN}{name}": _return_in(name) for name in dict.fromkeys(name for one in several for name in one)
    }
    place = [*COLUMNS].index("gain")
    return dict([*[*COLUMNS.items()][:place], *each.items(), *[*COLUMNS.items()][place:]])


def cells(rows: Sequence[Row], every: bool = True) -> tuple[list[str], list[list[str]]]:
    """The table's head and lines as text, of every column or of the main ones.

    Columns that are empty everywhere are left out, and the experiment's name where there is one only.
    """
    columns = _columns(rows)
    lines = [[show(row) for show in columns.values()] + [_own_protocol(row, rows)] for row in rows]
    head = [*columns, "protocol"]
    one_experiment = len({row["experiment"] for row in rows}) == 1
    filled = {name: number for number, name in enumerate(head) if any(line[number] for line in lines)}
    if one_experiment:
        filled.pop("experiment", None)
    main = main_columns(filled)
    kept = [number for name, number in filled.items() if every or name in main]
    return [head[number] for number in kept], [[line[number] for number in kept] for line in lines]


def pair_cells(pairs: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Every two methods as text, the second measured against the first."""
    head = ["student", "method", "against", "difference", CONFIDENCE, "p", "verdict"]
    several = len({pair["experiment"] for pair in pairs}) > 1
    lines = [
        [
            f"{pair['experiment']}/{pair['model']}" if several else pair["model"],
            pair["second"],
            pair["first"],
            scale_of(pair["metric"]).shown(pair["difference"], "+"),
            scale_of(pair["metric"]).interval(pair["interval"], "+"),
            _p_value(pair),
            pair["verdict"],
        ]
        for pair in pairs
    ]
    return head, lines


def tuning_heading(told: Mapping[str, Any]) -> str:
    """How the trials of a tuning were scored, in a line."""
    scale = scale_of(told["metric"])
    how = f"{told['trials']} trials each, by seed {told['seed']}"
    return f"{told['name']}: {how}; {scale.metric}{scale.unit} on the validation share"


def tuning_cells(chosen: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[str], list[list[str]]]:
    """What a tuning chose of every method, as text."""

    def shown(score: float | None) -> str:
        return "stopped" if score is None else scale_of(metric).shown(score)

    head = ["student", "method", "as it is", "best", "trial", "values"]
    lines = [
        [
            one["model"],
            one["method"],
            shown(one["as_configured"]),
            shown(one["score"]),
            "" if one["trial"] is None else str(one["trial"]),
            ", ".join(f"{key}: {value}" for key, value in one["values"].items()) or "as it is",
        ]
        for one in chosen
    ]
    return head, lines


def _own_protocol(row: Row, rows: Sequence[Row]) -> str:
    """What a student's protocol says that the heading does not say of all."""
    if row["role"] not in STUDENTS or not row["protocol"]:
        return ""
    shared = _shared_protocol(rows)
    metrics = {one["metric"] for one in rows}
    told = [row["metric"]] * (len(metrics) > 1)
    return ", ".join(
        told
        + [said(key, value) for key in PROTOCOL if (value := row["protocol"].get(key)) != shared.get(key)]
    )


def markdown(compared: Mapping[str, Any], mixed: bool = False) -> str:
    """The tables in Markdown, each under its heading, and what they say in words."""
    text = []
    for table in tables(compared, mixed):
        head, lines = cells(table.rows)
        text += [table.heading, "", *_marked_down(head, lines), ""]
    if compared.get("pairs"):
        text += [*_marked_down(*pair_cells(compared["pairs"])), ""]
    return "\n".join(text + [f"- {sentence}" for sentence in compared["remarks"]]).rstrip("\n") + "\n"


def _marked_down(head: list[str], lines: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def csv_text(compared: Mapping[str, Any]) -> str:
    """The rows with full precision, a column a key."""
    buffer = io.StringIO()
    rows = [dict(_flattened(row)) for row in compared["rows"]]
    keys = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(buffer, fieldnames=list(keys) or ["role"])
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flattened(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, with those of a mapping under its own key: ``latency_ms.p50``."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", one) for inner, one in _flattened(value))
        else:
            yield key, " ".join(str(item) for item in value) if isinstance(value, list) else value


LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "<": r"$<$",
}
"""What LaTeX reads as something else, or its plain fonts do not have, and how it is written."""


def latex(compared: Mapping[str, Any], mixed: bool = False) -> str:
    """The tables in LaTeX, as ``tabular`` that needs no package, each under its heading; the main columns only."""
    text = []
    for table in tables(compared, mixed):
        text += [f"% {table.heading}", *_tabular(*cells(table.rows, every=False))]
    if compared.get("pairs"):
        text += ["% every two methods", *_tabular(*pair_cells(compared["pairs"]))]
    return "\n".join(text)


def _tabular(head: list[str], lines: list[list[str]]) -> list[str]:
    kinds = "".join("l" if name in TEXT else "r" for name in head)
    first, *body = [" & ".join(map(_escaped, line)) + r" \\" for line in [head, *lines]]
    return [
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\hline",
        first,
        r"\hline",
        *body,
        r"\hline",
        r"\end{tabular}",
        "",
    ]


TEXT = {
    "role", "model", "made of", "experiment", "teacher", "verdict", "protocol", "student", "method", "against",
}  # fmt: skip
"""The columns of words."""


def _escaped(cell: str) -> str:
    escaped = "".join(LATEX.get(mark, mark) for mark in cell)
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)
