"""The report: true to the comparison, one file that asks for nothing, readable anywhere."""

import json
import re
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import command
from kdrun import compare, evidence
from kdrun.report import figures
from kdrun.report.page import page
from kdrun.statistics import scores
from kdrun.store import Store
from support import results, run

TEXT = """
name: told
dataset: {kind: digits, validation: 0.1}
seeds: [0, 1]
training: {epochs: 3, batch_size: 128}
teacher: {model: {kind: mlp, hidden: [24]}}
student: {model: {kind: mlp, hidden: [8]}}
methods: [kd, {name: both, losses: [ce, kd]}]
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder of a finished experiment's runs, with its report."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "told.yaml").write_text(TEXT)
    done = command("compare", "told.yaml", "--quiet", "--plots", "plots", folder=folder)
    assert done.code == 0, done.err
    return folder


def html(told):
    return (told / "runs/told/report.html").read_text()


def seen(told):
    [part] = compare.materials(Store(told / "runs"), ["told"])
    [shown] = evidence.evidence([part]).students
    return shown


# ------------------------------------------------------------------------------------------------ true


def test_the_report_says_what_the_comparison_says(told):
    compared = json.loads((told / "runs/told/comparison.json").read_text())
    text = html(told)
    for sentence in compared["remarks"]:
        assert f">{escape(sentence)}</li>" in text
    for row in compared["rows"]:
        if row["verdict"]:
            assert f">{row['verdict']}</td>" in text
        assert f"{100 * row['mean']:.2f}" in text
    assert "test data " + compared["protocol"]["test_sha256"][:8] in text


def test_curves_are_those_of_the_log(told):
    curve = next(curve for curve in seen(told).curves if curve.label == "kd")
    assert curve.loss.shape == curve.validation.shape == (2, 3)
    line = results(told / "runs")["students/student/kd/seed-1"].metrics()[2]
    total = sum(term["value"] * term["weight"] for term in line["terms"].values())
    assert curve.loss[1, 2] == pytest.approx(total)
    assert curve.validation[1, 2] == line["validation"]["accuracy"]


def test_shares_of_the_gradient_are_those_of_the_log(told):
    curve = next(curve for curve in seen(told).curves if curve.label == "kd")
    lines = [results(told / "runs")[f"students/student/kd/seed-{seed}"].metrics()[0] for seed in (0, 1)]
    for term in ("ce", "kd"):
        logged = [line["terms"][term]["gradient_share"] for line in lines]
        assert curve.shares[term] == {1: pytest.approx(np.mean(logged))}
    assert sum(shares[1] for shares in curve.shares.values()) == pytest.approx(1)


def test_gains_by_class_are_those_of_the_predictions(told):
    shown = seen(told)
    found = dict(zip(shown.gain_labels, shown.gains_by_class, strict=True))["kd"]
    assert shown.classes == [str(digit) for digit in range(10)]
    differences = []
    for seed in (0, 1):
        own, alone = (
            results(told / "runs")[f"students/student/{method}/seed-{seed}"].predictions()
            for method in ("kd", "alone")
        )
        of_class = own["labels"] == 3
        right = [(said["logits"].argmax(1) == own["labels"])[of_class].mean() for said in (own, alone)]
        differences.append(right[0] - right[1])
    assert found[3] == pytest.approx(100 * np.mean(differences))


def test_reliability_counts_every_test_sample_of_every_seed(told):
    for bins in seen(told).reliability.values():
        assert sum(count for count, _, _ in bins) == pytest.approx(2 * 540)
    result = results(told / "runs")["students/student/kd/seed-0"]
    gaps = [n * abs(sure - right) for n, sure, right in result.manifest["details"]["reliability"]]
    assert sum(gaps) / 540 == pytest.approx(result.manifest["scores"]["ece_equal_width"], abs=1e-9)


def test_agreement_is_that_of_the_predictions(told):
    shown = seen(told)
    assert shown.agreement_labels == ["teacher", "alone", "label-smoothing", "kd", "both"]
    assert np.allclose(shown.agreement, shown.agreement.T) and np.allclose(np.diag(shown.agreement), 1)
    first, second = (
        results(told / "runs")[place].predictions()["logits"].argmax(1)
        for place in ("teachers/teacher/seed-0", "students/student/kd/seed-0")
    )
    assert shown.agreement[0, 3] == pytest.approx((first == second).mean())


def test_a_class_without_test_samples_has_no_share():
    logits = np.eye(3, dtype=np.float32)[[0, 1, 0]]
    found = scores.details(logits, np.array([0, 1, 1]))
    assert found["by_class"] == [1.0, 0.5, None]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12))
def test_on_the_pareto_front_nothing_is_beaten(places):
    front = figures.pareto(places)
    for at, (cost, score) in enumerate(places):
        beaten = any((c <= cost and s > score) or (c < cost and s >= score) for c, s in places)
        if beaten:
            assert at not in front
        else:
            assert (cost, score) in [places[one] for one in front]
    costs = [places[at][0] for at in front]
    assert costs == sorted(set(costs))


# ----------------------------------------------------------------------------------------- what is drawn


def test_every_figure_is_written_as_png_and_pdf(told):
    files = {path.name for path in (told / "plots").iterdir()}
    names = {
        "gains",
        "score-against-macs",
        "score-against-latency",
        "loss",
        "validation",
        "classes",
        "reliability",
    }
    assert files == {f"{name}.{kind}" for name in names | {"agreement"} for kind in ("png", "pdf")}
    assert (told / "plots/gains.png").read_bytes().startswith(b"\x89PNG")
    assert (told / "plots/gains.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_results_draw_the_same_page(told):
    before = html(told)
    assert command("compare", "told.yaml", "--no-train", "--quiet", folder=told).code == 0
    assert html(told) == before


def test_many_classes_and_many_models_are_cut_with_a_word():
    draw = np.random.default_rng(0)
    [plot] = figures.by_class("", ["kd"], [f"class {n}" for n in range(100)], draw.normal(size=(1, 100)), "x")
    assert "the 40 classes with the largest" in plot.caption
    look = {f"m{n}": figures.Look("k", "o", "-") for n in range(14)}
    [plot] = figures.reliability("", {name: [[5, 0.9, 0.8]] for name in look}, "x", look)
    assert plot.caption.endswith("the first 12 of 14.")


def test_without_students_or_seeds_there_is_a_report_all_the_same(tmp_path):
    run(TEXT, tmp_path, "methods=[]", "controls=none", "seeds=[0]", "dataset.validation=0")
    parts = compare.materials(Store(tmp_path), ["told"])
    compared = compare.comparison(parts)
    evidence.write_report(tmp_path / "out", compared, parts, mixed=False)
    assert "student alone" in (tmp_path / "out/report.html").read_text()


# ------------------------------------------------------------------------------------------- one file


def test_names_are_escaped(told):
    parts = compare.materials(Store(told / "runs"), ["told"])
    compared = compare.comparison(parts)
    compared["remarks"] = ["<script>alert(1)</script>"]
    compared["name"] = "a<b&c"
    text = page(compared, [], {"x": {"git": "<i>"}}, {"x": "<b>"})
    assert "<script" not in text and "<i>" not in text and "<b>" not in text and "a&lt;b&amp;c" in text


def test_it_names_nothing_outside_itself(told):
    text = html(told)
    addresses = set(re.findall(r'https?://[^"<> ]+', text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}, "names, not addresses"
    assert not re.search(r"<script|@import|src=", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids) and used


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that tells what it asked the network for."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("no Chromium here; Debian has it as chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    quiet = ["background-networking", "component-update", "sync", "gpu", "dev-shm-usage"]
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--no-first-run",
        *(f"--disable-{name}" for name in quiet),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


def opened(browser, path, width, scheme="light"):
    device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(Path(path).as_uri())


@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_it_without_an_error_or_a_request(browser, told, width):
    path = told / "runs/told/report.html"
    browser.get_log("performance")
    opened(browser, path, width)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in sent if not url.startswith("data:")} == {path.as_uri()}
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert len(drawn) == 8 and min(drawn) > 50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, told, scheme):
    opened(browser, told / "runs/told/report.html", 1280, scheme)
    colours = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    ink, paper = (np.array([int(n) for n in re.findall(r"\d+", colour)[:3]]) / 255 for colour in colours)
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (ink, paper)]
    bright, dim = sorted((float(c @ [0.2126, 0.7152, 0.0722]) for c in linear), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= 7
    assert (paper.mean() < 0.5) == (scheme == "dark")


PAPER = 1031
"""Pixels of A4 across, within the margins that the page asks for."""


def test_it_prints_on_paper(browser, told):
    opened(browser, told / "runs/told/report.html", 1280)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": PAPER, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        script = "return [...document.querySelectorAll('.wide')].map(e => [e.scrollWidth, e.clientWidth])"
        for wanted, there in browser.execute_script(script):
            assert wanted <= there, "cut off at the edge of the paper"
        height = browser.execute_script("return document.querySelector('details pre').offsetHeight")
        assert height > 100, "the config is folded away"
        printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
        assert len(printed["data"]) > 10_000
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_method_looks_alike_in_every_figure_and_like_no_other():
    rows = [{"role": "teacher", "model": "kd", "method": None}]
    rows += [{"role": "student", "model": m, "method": f"m{n}"} for n in range(40) for m in ("a", "b")]
    look = figures.looks(rows)
    assert len(look) == 41 and len({(one.colour, one.mark) for one in look.values()}) == 41


@pytest.mark.parametrize("name", ["kd", "x" * 20, "a-very-long-name-of-a-method-indeed"])
def test_a_long_name_is_shortened_in_the_middle(name):
    told = figures.short(name)
    assert len(told) <= 20 and told[:9] == name[:9] and told[-9:] == name[-9:]
    assert (told == name) == (len(name) <= 20)
