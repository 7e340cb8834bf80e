"""A decision tree as rules: bounds merged, in the data's own units, as text and as a Python function; no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import printable
from kdrun.report.scales import OF_RETURNS
from kdrun.statistics.scores import RETURN

WHOLE = re.compile("0|-?[1-9][0-9]*")
Rules = Mapping[str, Any]
"""What ``rules.json`` holds: names of features and classes, and the rules, those of most samples first."""


def extracted(
    tree: Mapping[str, np.ndarray],
    choice: np.ndarray,
    thresholds: np.ndarray,
    features: Sequence[str],
    classes: Sequence[str],
    leaves: np.ndarray,
    labels: np.ndarray,
) -> dict[str, Any]:
    """The rules of one tree, given by the arrays of ``models.trees.Trees``.

    ``choice`` (L,) are the classes that its leaves say, ``thresholds`` (S,) those of its splits in the data's units.
    Splits below which all leaves say one class are left out. ``leaves`` (N,) and ``labels`` (N,) are those of the
    training samples: a rule's support is the share of them that it is true of, its confidence the share of these that
    are of its class.
    """
    feature, branches = tree["feature"], tree["branches"].reshape(-1, 2)
    counts = np.zeros((len(choice), len(classes)), np.int64)
    np.add.at(counts, (leaves, labels), 1)
    said, below = np.full(len(feature), -1), np.zeros((len(feature), len(classes)), np.int64)

    def one_class(place: int) -> int:
        """The class that all leaves below a place say, or -1."""
        return int(choice[~place] if place < 0 else said[place])

    def samples(place: int) -> np.ndarray:
        found: np.ndarray = counts[~place] if place < 0 else below[place]
        return found

    for split in reversed(range(len(feature))):  # those below it come after it
        left, right = branches[split]
        below[split] = samples(left) + samples(right)
        said[split] = one_class(left) if one_class(left) == one_class(right) else -1
    found = []
    open_: list[tuple[int, dict[int, tuple[float | None, float | None]]]] = [(int(tree["roots"][0]), {})]
    while open_:
        place, bounds = open_.pop()
        if (chosen := one_class(place)) >= 0:
            found.append(_rule(bounds, samples(place), chosen, len(labels), features, classes))
            continue
        number, threshold = int(feature[place]), float(thresholds[place])
        above, at_most = bounds.get(number, (None, None))
        left, right = (int(side) for side in branches[place])
        open_.append((right, bounds | {number: (threshold, at_most)}))
        open_.append((left, bounds | {number: (above, threshold)}))
    found.sort(key=lambda rule: -rule["samples"])
    return {"features": list(features), "classes": list(classes), "samples": len(labels), "rules": found}


def _rule(
    bounds: Mapping[int, tuple[float | None, float | None]],
    samples: np.ndarray,
    chosen: int,
    total: int,
    features: Sequence[str],
    classes: Sequence[str],
) -> dict[str, Any]:
    """A rule: on the way down each bound is tighter than those before it, so that the last ones say all."""
    true_of = int(samples.sum())
    return {
        "if": [
            {"feature": features[number], "above": above, "at_most": at_most}
            for number, (above, at_most) in bounds.items()
        ],
        "then": classes[chosen],
        "samples": true_of,
        "support": true_of / total,
        "confidence": int(samples[chosen]) / true_of if true_of else None,
    }


def mean_length(rules: Rules) -> float:
    """Conditions of a rule, in the mean; one that has both bounds of a feature counts as two."""
    lengths = [
        sum((bound["above"] is not None) + (bound["at_most"] is not None) for bound in rule["if"])
        for rule in rules["rules"]
    ]
    return sum(lengths) / len(lengths)


def about(folder: Path, manifest: Mapping[str, Any], rules: Rules) -> dict[str, Any]:
    """What a finished tree is, and how good: its scores on the test samples, its likeness to its teachers, its size."""
    likeness = manifest["likeness"]
    said = {rule["then"] for rule in rules["rules"]}
    return {
        "run": str(folder),
        "model": manifest["name"],
        "method": manifest["method"],
        "seed": manifest["seed"],
        "test_samples": manifest["protocol"]["test_samples"],
        "accuracy": manifest["scores"]["accuracy"],
        "agreement": likeness and likeness["test"]["agreement"],
        **({RETURN: manifest["scores"][RETURN]} if RETURN in manifest["scores"] else {}),
        "number": len(rules["rules"]),
        "mean_length": mean_length(rules),
        "never": [name for name in rules["classes"] if name not in said],
    }


def sentence(about: Mapping[str, Any]) -> str:
    """The same in words."""
    who = " ".join(filter(None, (about["model"], about["method"])))
    does, of = f"right on {100 * about['accuracy']:.1f} % of {about['test_samples']} test samples", "of them"
    if RETURN in about:
        scored = f"{OF_RETURNS.metric} {OF_RETURNS.shown(about[RETURN])}"
        does, of = f"{scored} on {about['test_samples']} {OF_RETURNS.cases}", "of the test states"
    agreement = about["agreement"]
    agrees = "" if agreement is None else f"agrees with its teacher on {100 * agreement:.1f} % {of}, "
    never = f", and it never says {', '.join(about['never'])}" if about["never"] else ""
    count = f"{about['number']} rule{'s' * (about['number'] != 1)}"
    return (
        f"{who}, seed {about['seed']}: {does}, {agrees}{count} of {about['mean_length']:.1f} conditions in the mean"
        f"{never}"
    )


def text(rules: Rules) -> Iterator[str]:
    """A line for each rule."""
    for number, rule in enumerate(rules["rules"], start=1):
        conditions = " and ".join(_condition(bound) for bound in rule["if"])
        known = "no training sample"
        if rule["samples"]:
            count = f"{rule['samples']} training sample{'s' * (rule['samples'] != 1)}"
            known = (
                f"{count}, {100 * rule['support']:.1f} %; right for {100 * rule['confidence']:.1f} % of them"
            )
        words = f"if {conditions} then {rule['then']}" if conditions else f"always {rule['then']}"
        yield printable(f"{number}. {words}    ({known})")


def _condition(bound: Mapping[str, Any]) -> str:
    name, above, at_most = bound["feature"], bound["above"], bound["at_most"]
    if above is None:
        return f"{name} <= {_number(at_most)}"
    if at_most is None:
        return f"{name} > {_number(above)}"
    return f"{_number(above)} < {name} <= {_number(at_most)}"


def _number(value: float) -> str:
    """As short as it can be written and read again."""
    return repr(value).removesuffix(".0")


def python(rules: Rules, about: str) -> str:
    """A module with a function that needs nothing but Python; names are quoted, whatever they hold.

    Where all classes are whole numbers they are numbers there, too.
    """
    *first, last = rules["rules"]
    named = int if all(map(WHOLE.fullmatch, rules["classes"])) else str
    used = dict.fromkeys(bound["feature"] for rule in rules["rules"] for bound in rule["if"])
    lines = [
        f'"""{_quoted(about)}"""',
        "",
        "from math import isfinite",
        "",
        f"FEATURES = {list(rules['features'])!r}",
        f"USED = {[*used]!r}",
        f"CLASSES = {[named(name) for name in rules['classes']]!r}",
        "",
        "",
        "def predict(row):",
        '    """The class of a row: numbers by the names of those that are USED, or all in the order of FEATURES."""',
        '    if not hasattr(row, "keys"):',
        "        if len(row) != len(FEATURES):",
        '            raise ValueError(f"a row of {len(row)} and not of {len(FEATURES)} numbers")',
        "        row = dict(zip(FEATURES, row))",
        "    row = {name: float(row[name]) for name in USED}",
        "    if not all(map(isfinite, row.values())):",
        '        raise ValueError(f"not all of {row} are finite numbers")',
    ]
    for rule in first:
        conditions = " and ".join(_expression(bound) for bound in rule["if"])
        lines += [f"    if {conditions}:", f"        return {named(rule['then'])!r}"]
    return "\n".join([*lines, f"    return {named(last['then'])!r}", ""])


def _quoted(about: str) -> str:
    """What may stand in a docstring of one line."""
    return printable(about).replace("\\", "\\\\").replace('"', '\\"')


def _expression(bound: Mapping[str, Any]) -> str:
    name, above, at_most = f"row[{bound['feature']!r}]", bound["above"], bound["at_most"]
    if above is None:
        return f"{name} <= {at_most!r}"
    return f"{name} > {above!r}" if at_most is None else f"{above!r} < {name} <= {at_most!r}"
