"""A comparison in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdrun.controls import ALONE
from kdrun.report.learning import steps_told
from kdrun.report.scales import scale_of
from kdrun.statistics.inference import LEVEL, MOST_SEEDS, POWER

LEVEL_WITH = "not distinguishable"
MANY = 5
"""From so many methods on they are counted instead of named."""
FEW_SEEDS = 5
"""Under so many the words say what could have been found at all."""

MANY_ZEROS = 0.01
"""The share from which it is told that parameters are 0."""
GIVEN = ("labels_per_class", "transfer_samples", "left_out")
"""What a protocol says of students, and of those teachers that see what they see."""

Row = Mapping[str, Any]


def remarks(rows: Sequence[Row], pairs: Sequence[Row]) -> list[str]:
    """What the rows say, student by student: who is better, who is not distinguishable, and how far to believe it."""
    students = dict.fromkeys((row["experiment"], row["model"]) for row in rows if row["verdict"])
    several, experiments = len(students) > 1, {experiment for experiment, _ in students}
    said = []
    for experiment, student in students:
        own = [row for row in _of(rows, experiment, student) if row["role"] == "student"]
        name = f"{f'{experiment}/' * (len(experiments) > 1)}{student}: " if several else ""
        of_student = [p for p in pairs if (p["experiment"], p["model"]) == (experiment, student)]
        alone = next((row["mean"] for row in _of(rows, experiment, student) if row["method"] == ALONE), None)
        budgets = _budgets(_of(rows, experiment, student))
        left_out = _left_out(_of(rows, experiment, student))
        reached = _reached(_of(rows, experiment, student))
        sentences = [*_of_student(own, alone, of_student), *reached, *left_out, *budgets, *_incomplete(own)]
        said += [name + sentence for sentence in sentences]
    said += [*_of_ensembles(rows), *_of_compressed(rows), *_of_teachers(rows), *_of_given_labels(rows)]
    return [*said, *_tested_in_transfer(rows)]


def _of(rows: Sequence[Row], experiment: str, student: str) -> list[Row]:
    return [row for row in rows if (row["experiment"], row["model"]) == (experiment, student)]


def _budgets(rows: Sequence[Row]) -> Iterable[str]:
    """How many trials chose the values of each row, where some were chosen so, and whose budget is not alone's."""
    by_trials: dict[int, list[str]] = {}
    for row in rows:
        by_trials.setdefault(row["tuning_trials"] or 0, []).append(row["method"])
    for trials, names in by_trials.items():
        if trials:
            yield f"tuned by {_counted(trials, 'trial')} each, on validation data: {listed(names)}"
    of_alone = next((trials for trials, names in by_trials.items() if ALONE in names), 0)
    if less := [name for trials, names in by_trials.items() if trials < of_alone for name in names]:
        yield f"not tuned, or less than alone beside which they stand: {listed(less)}"
    if more := [name for trials, names in by_trials.items() if trials > of_alone for name in names]:
        yield f"tuned more than alone, so that a gain may be the tuning's: {listed(more)}"


def _reached(rows: Sequence[Row]) -> Iterable[str]:
    """After how many steps of the environment each row reaches the target, where students act by themselves."""
    return [steps_told(row["method"], row["steps_to_target"]) for row in rows if row["steps_to_target"]]


def _left_out(rows: Sequence[Row]) -> Iterable[str]:
    """How much each row recognises of the classes that no student saw."""
    known = sorted(
        (row for row in rows if row["left_out_recall"] is not None), key=lambda row: -row["left_out_recall"]
    )
    if known:
        told = [f"{row['method']} {100 * row['left_out_recall']:.1f} %" for row in known]
        yield f"of the test samples of what was left out ({known[0]['protocol']['left_out']}) recognise: {listed(told)}"


def _incomplete(rows: Sequence[Row]) -> Iterable[str]:
    """Which rows stand on a part of their runs only."""
    for row in rows:
        if row["status"] != "finished" and row["values"]:
            what = "failed" if row["status"] == "failed" else "is not finished"
            without = (
                "" if row["verdict"] or row["gain"] is None else ", and one seed beside alone is no verdict"
            )
            yield f"{row['method']} {what} in some of its seeds: its figures are those of the others{without}"


def _of_student(rows: Sequence[Row], alone: float | None, pairs: Sequence[Row]) -> Iterable[str]:
    judged = sorted((row for row in rows if row["verdict"]), key=lambda row: -row["gain"])
    level = [row for row in judged if row["verdict"] == LEVEL_WITH]
    grouped = len(level) >= MANY
    if not judged:
        return
    scale = scale_of(judged[0]["metric"])
    for row in judged:
        if row["verdict"] != LEVEL_WITH or not grouped:
            yield _verdict(row, len(judged))
    if grouped:
        yield (
            f"{len(level)} of {_counted(len(judged), 'method')} are not distinguishable from alone: gains from "
            f"{scale.shown(level[-1]['gain'], '+')} to {scale.difference(level[0]['gain'])}"
        )
    better = [row["method"] for row in judged if row["verdict"] == "better"]
    if len(better) > 1:
        yield from _among_the_best(better, pairs)
    yield from _against_controls(judged)
    if any(row["gain_covers"] == scale.both_noises for row in judged):
        yield (
            "seeds of what is fitted at once may hardly differ: for a verdict a gain must exceed the noise of the "
            f"{scale.cases}, too"
        )
    if len(judged) > 1:
        yield f"verdicts and p-values allow for all {len(judged)} methods (Holm), intervals for one method by itself"
    yield from _what_could_be_found(judged, alone)


def _what_could_be_found(judged: Sequence[Row], alone: float | None) -> Iterable[str]:
    """How much so few seeds can tell."""
    scale = scale_of(judged[0]["metric"])
    seeds = max(row["gain_seeds"] for row in judged)
    if seeds == 1:
        yield f"one seed: intervals and p-values cover the noise of the {scale.cases} only, not that of training"
        return
    found = [
        row["detectable"] for row in judged if row["gain_seeds"] == seeds and row["detectable"] is not None
    ]
    if seeds >= FEW_SEEDS or not found:
        return
    with_so_many = f"with {seeds} seeds and {_counted(len(judged), 'method')}"
    if alone is not None and max(found) > scale.bounds[1] - alone:
        yield f"{with_so_many} no gain that is possible here can be counted on to be found: take more seeds"
    else:
        yield (
            f"{with_so_many} only gains of {scale.difference(max(found), sign='')} and more are found in {POWER:.0%} "
            "of such comparisons"
        )


def _against_controls(judged: Sequence[Row]) -> Iterable[str]:
    """For each control beside alone, which methods are better than it, and which are not."""
    controls = dict.fromkeys(control for row in judged for control in row["against"] or {})
    for control in controls:
        sorted_: dict[str, list[str]] = {}
        for row in judged:
            if told := (row["against"] or {}).get(control):
                sorted_.setdefault(told["verdict"], []).append(row["method"])
        parts = [
            f"{verdict}: {_some(sorted_[verdict])}"
            for verdict in ("better", "worse", LEVEL_WITH)
            if verdict in sorted_
        ]
        yield f"beside {control}, {'; '.join(parts)}"


def _some(names: Sequence[str]) -> str:
    """The names, or how many there are."""
    return listed(names) if len(names) <= MANY else f"{len(names)} methods"


def _verdict(row: Row, methods: int) -> str:
    seeds, scale = row["gain_seeds"], scale_of(row["metric"])
    gain = f"{scale.difference(row['gain'])} {scale.interval(row['gain_interval'], '+')}"
    found = f"{gain}, {_counted(seeds, 'seed')}"
    sentence = f"{row['method']} {_how(row['verdict'])} alone: {found}"
    if row["verdict"] != LEVEL_WITH:
        return sentence
    sentence += _by_itself(row, row["gain_interval"], methods, "method")
    if row["gain_covers"] != "seeds" or not row["gain"]:
        return sentence
    needed = row["seeds_needed"] or f"more than {MOST_SEEDS}"
    return f"{sentence}; {needed} would tell a difference of this size"


def _among_the_best(better: Sequence[str], pairs: Sequence[Row]) -> Iterable[str]:
    """How the highest of the better methods compares with the others of them."""
    best, *rest = better
    verdicts = {}
    for pair in pairs:
        first, second, verdict = pair["first"], pair["second"], pair["verdict"]
        if verdict != LEVEL_WITH:
            verdict = "beaten" if (second if verdict == "better" else first) == best else "ahead"
        verdicts[frozenset((first, second))] = verdict
    alike = [one for one in rest if verdicts.get(frozenset((best, one))) == LEVEL_WITH]
    if alike:
        yield (
            f"{best} and {alike[0]} are not distinguishable"
            if len(alike) == 1
            else f"{listed(alike)} are not distinguishable from {best}"
        )
    if beaten := [one for one in rest if verdicts.get(frozenset((best, one))) == "beaten"]:
        yield f"{best} is better than {listed(beaten)}"


def _of_ensembles(rows: Sequence[Row]) -> Iterable[str]:
    """How teachers together compare with each of them."""
    several = len({row["experiment"] for row in rows}) > 1
    for row in rows:
        if row["role"] != "ensemble" or not row["against"]:
            continue
        name, members = f"{row['experiment']}/" * several + row["model"], row["against"]
        scale = scale_of(row["metric"])
        found = [
            f"{_how(one['verdict'])} {member}: "
            f"{scale.difference(one['difference'])} {scale.interval(one['interval'], '+')}"
            f"{_by_itself(one, one['interval'], len(members), 'member')}"
            for member, one in members.items()
        ]
        yield f"{name} {'; '.join(found)}"


def _of_compressed(rows: Sequence[Row]) -> Iterable[str]:
    """What students that are made of others cost beside these, and what zeros do not save."""
    several = len({row["experiment"] for row in rows}) > 1
    by_name = {(row["experiment"], f"{row['model']}/{row['method']}"): row for row in rows}
    made: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row["origin"] and row["bytes"]:
            made.setdefault((row["experiment"], row["model"]), row)
    taught = []
    for (experiment, model), row in made.items():
        origin = by_name.get((experiment, row["origin"]))
        name = f"{f'{experiment}/' * several}{model}"
        taught += [name] * bool(origin and origin["teacher"])
        sentence = f"{name} is made of {row['origin']}"
        if origin is not None and origin["bytes"]:
            as_large = all(row[key] == origin[key] for key in ("bytes", "macs"))
            if row["zeros"] >= MANY_ZEROS and as_large:
                sentence += (
                    f"; {row['zeros']:.0%} of its parameters are 0, which saves neither bytes nor time"
                )
            sentence += f": {row['bytes']:,} bytes beside {origin['bytes']:,}"
            if row["latency_ms"] and origin["latency_ms"]:
                here, there = (one["latency_ms"]["p50"] for one in (row, origin))
                sentence += f", {here:.3g} ms for one sample beside {there:.3g}"
        yield sentence
    if taught:
        start = "start" if len(taught) > 1 else "starts"
        words = "from what a teacher has taught, and alone, too: that row has no teacher from there on"
        yield f"{listed(taught)} {start} {words}"


def _by_itself(judged: Mapping[str, Any], ends: Sequence[float], count: int, noun: str) -> str:
    """A clause where one test by itself tells a difference that the verdict, one of several, does not."""
    low, high = ends
    if judged["verdict"] != LEVEL_WITH or count < 2 or low <= 0 <= high:
        return ""
    if judged["p_value"] >= count * LEVEL:  # Holm's is at most so many times that of the test by itself
        return ""
    return f"; it would be by itself, but not as one of {_counted(count, noun)}"


def _how(verdict: str) -> str:
    return "is not distinguishable from" if verdict == LEVEL_WITH else f"is {verdict} than"


def _tested_in_transfer(rows: Sequence[Row]) -> Iterable[str]:
    """A word on students that may have seen what they are tested on."""
    counts = [(row["protocol"] or {}).get("tested_in_transfer") for row in rows]
    if most := max(filter(None, counts), default=0):
        yield (
            f"{_counted(most, 'sample')} of a transfer set are test samples, too: what learnt from them has seen what "
            "it is tested on"
        )


def _of_teachers(rows: Sequence[Row]) -> Iterable[str]:
    """A word on teachers that taught every seed of a student."""
    once = {
        (row["experiment"], row["model"])
        for row in rows
        if row["role"] in ("teacher", "ensemble") and len(row["seeds"] or []) == 1
    }
    used = {
        (row["experiment"], name)
        for row in rows
        if row["verdict"] and row["teacher"] and row["gain_seeds"] > 1
        for name in row["teacher"].split("+")
    }
    names = sorted({name for _, name in once & used})
    if names:
        those = "those teachers" if len(names) > 1 else "that teacher"
        yield (
            f"one training of {listed(names)} taught all seeds: what is said of its students holds for {those} "
            "(`seeds: each` trains one for each seed)"
        )


def _of_given_labels(rows: Sequence[Row]) -> Iterable[str]:
    """Which teachers were trained as students are, where these do not see all."""
    names = dict.fromkeys(
        row["model"]
        for row in rows
        if row["role"] == "teacher" and row["protocol"] and any(map(row["protocol"].get, GIVEN))
    )
    if names:
        noun = f"teacher{'s' * (len(names) > 1)}"
        yield f"trained on what is given to the students: the {noun} {listed([*names])}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: 'a, b and c'."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


CONFIDENCE = f"{1 - LEVEL:.0%}"
