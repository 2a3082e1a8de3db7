import html
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from a5_runs import write_run
from harness.file_names import ToyCurveKey, ToyScoreKey, parse_name
from harness.paths import A5_RESULTS, ROOT, TOY_RESULTS
from recorded import write_record
from verdict import draw_1
from verdict.results import LINEAR_CDE, published_results

PUBLISHED = published_results()
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
WIDTHS = (400, 1400)


class Page(HTMLParser):
    """What the tests look for in a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.targets, self.classes, self.tags = [], set(), Counter(), Counter()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href", "src", "data", "action"):
                self.targets |= {value[1:]} if value.startswith("#") else set()
                self.addresses += [] if value.startswith("#") else [(tag, name, value)]
            elif name == "class":
                self.classes.update((tag, word) for word in value.split())
            self.targets |= set(re.findall(r"url\(#([^)]*)\)", value or ""))


def write_toy_curve(folder: Path, configuration: tuple, input_dim: int, run: int) -> None:
    key = ToyCurveKey(*configuration, input_dim, 0.0001, 256, run)
    np.save(folder / key.names[0], np.arange(0, 10001, 5000))
    np.save(folder / key.names[1], np.array([0.2, 0.09, 0.04]))
    paths = [folder / name for name in key.names]
    write_record(paths, {"max_steps": 10000, **vars(key)})


def write_linear_cde(folder: Path, input_dim: int, run: int, factor: float) -> None:
    path = folder / ToyScoreKey(input_dim, run).names[0]
    np.save(path, np.array(PUBLISHED["figure_1"]["linear_cde"]["mse"][input_dim][run] * factor))
    config = {"matmul_precision": "float32", "input_dim": input_dim, "run": run}
    write_record([path], config)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Results with every kind of verdict, their longest texts and a file that is skipped."""
    results_dir = tmp_path_factory.mktemp("results")
    folder = results_dir / TOY_RESULTS
    folder.mkdir()
    for run, factor in enumerate((0.6, 1.0, 1.5, 0.3)):
        write_linear_cde(folder, 2, run, factor)
    for configuration in draw_1.STYLES:
        for input_dim, runs in ((2, 2), (3, 1)):
            for run in range(runs):
                write_toy_curve(folder, configuration, input_dim, run)
    write_run(results_dir, LINEAR_CDE, 1, 3)
    write_run(results_dir, "S4", 1, 5)
    write_run(results_dir, "Transformer", 2, 3)
    config = {"dropout": 0.5, "eval_interval": 1000, "state_dim": "<b>64</b>"}
    paths = write_run(results_dir, "Mamba", 1, 3)
    write_record(paths, {**config, **vars(parse_name(paths[0].name))})
    (results_dir / A5_RESULTS / "linear_cde_length_4_steps.npy").write_bytes(b"")
    return results_dir


def run_from(folder: Path, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "compare_to_paper.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def text(results) -> str:
    done = run_from("/", "--results-dir", results, "--format", "html")
    assert done.returncode == 0
    return done.stdout


def test_the_page_loads_nothing_and_has_no_script(text):
    page = Page(text)
    assert page.addresses == [("a", "href", "https://arxiv.org/abs/2402.19047")]
    assert not page.tags.keys() & {"script", "link", "img", "iframe", "object", "embed"}
    assert re.findall(r"@import|url\((?!#)|\bon[a-z]+=", text) == []
    assert page.tags["svg"] == 2


def test_ids_are_unique_and_every_reference_has_its_target(text):
    page = Page(text)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert page.targets <= set(page.ids)
    assert {f"rule-{name}" for name in ("linear-cde", "blocks", "precision")} <= page.targets


def test_every_number_of_the_paper_is_in_a_table(text):
    body = re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert text.count("<td class=") == 70
    for numbers in PUBLISHED["figure_1"]["linear_cde"]["mse"].values():
        assert all(f"<td>{number:.4e}</td>" in body for number in numbers)
    for curve in PUBLISHED["figure_1"]["sequence_models"]["curves"]:
        if curve["model"] == "S5":  # not run, so compared with the final values
            assert f"{curve['rmse'][990000]['mean']:.4f}" in body
    page = Page(text)
    verdicts = {word for tag, word in page.classes if tag == "span"} - {"verdict"}
    assert verdicts == {
        "agrees",
        "disagrees",
        "better-outside-the-band",
        "GPU-rounding",
        "worse-outside-the-band",
        "partial",
        "not-comparable",
        "not-run",
    }
    assert "Not everywhere: of the paper&#39;s 100 numbers, " in text


def test_partial_runs_show_the_papers_range_at_their_step_and_a_lone_run_no_second_row(text):
    assert "0.0400<small>step 10,000</small></td><td>0.0560<small>0.0490–0.0639</small>" in text
    assert text.count(">Mamba, depth 1, run 0<") == 1  # of 2D, where there are two runs


def test_texts_from_files_are_escaped_and_skipped_files_named(text):
    assert "state_dim <b>&lt;b&gt;64&lt;/b&gt;</b>" in text
    assert "<b>64" not in text
    assert "<li>linear_cde_length_4_steps.npy: not a readable .npy file" in text


def test_the_same_results_give_the_same_bytes_from_any_folder(text, results, tmp_path):
    shutil.copytree(results, tmp_path / "copy")
    done = run_from(tmp_path, "--results-dir", "copy", "--report")
    assert done.returncode == 0
    assert (tmp_path / "copy" / "report.html").read_text(encoding="utf-8") == text
    report = (tmp_path / "copy" / "REPORT.md").read_text(encoding="utf-8")
    assert "## How each result was made" in report
    assert "![" not in report


def test_figures_without_results_are_replaced_by_a_sentence(tmp_path):
    write_run(tmp_path, "S4", 1, 3, accs=(0.02, 0.5))
    done = run_from("/", "--results-dir", tmp_path, "--format", "html")
    assert (done.returncode, Page(done.stdout).tags["svg"]) == (0, 0)
    assert "There are no toy results to draw." in done.stdout
    assert "No run solves a length" in done.stdout


def test_without_any_results_there_is_a_message_and_no_report(tmp_path):
    done = run_from("/", "--results-dir", tmp_path, "--report")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"nothing to compare: no results in {tmp_path}\n"
    assert list(tmp_path.iterdir()) == []


# In a browser.

HARNESS = """<!DOCTYPE html><body>{frames}<pre id="found"></pre><script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument;
    const boxes = [...page.body.querySelectorAll("*")].filter(e => !e.closest("svg *"));
    const right = e => e.getBoundingClientRect().right;
    return {{
      width: frame.clientWidth,
      scrollWidth: page.documentElement.scrollWidth,
      outside: boxes.filter(e => right(e) > frame.clientWidth).map(e => e.outerHTML.slice(0, 80)),
      figures: [...page.querySelectorAll("svg")].map(e => [e.clientWidth, e.clientHeight]),
      ink: getComputedStyle(page.body).color,
      paper: getComputedStyle(page.body).backgroundColor,
      behind: getComputedStyle(page.querySelector(".picture")).backgroundColor,
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});</script></body>"""


def look_at(text: str, folder: Path, dark: bool) -> tuple[list[dict], str]:
    """What a browser makes of the page at each of `WIDTHS`, and what it logs."""
    frames = [
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(text)}">'
        "</iframe>"
        for width in WIDTHS
    ]
    harness = folder / "harness.html"
    harness.write_text(HARNESS.format(frames="".join(frames)), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [BROWSER, *options, scheme, harness.as_uri()],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, flags=re.DOTALL)[1]
    return json.loads(html.unescape(found)), done.stderr


def brightness(color: str) -> float:
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


@pytest.mark.skipif(BROWSER is None, reason=f"needs one of {', '.join(BROWSERS)}")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser_nothing_overflows_and_the_figures_show_in_light_and_dark(
    text, tmp_path, dark
):
    found, log = look_at(text, tmp_path, dark)
    assert "CONSOLE" not in log
    assert [view["width"] for view in found] == list(WIDTHS)
    for view in found:
        assert (view["scrollWidth"], view["outside"]) == (view["width"], [])
        assert len(view["figures"]) == 2
        for width, height in view["figures"]:
            assert width > 0.8 * min(view["width"], 800)
            assert height > 0.3 * width
        assert (brightness(view["ink"]) > brightness(view["paper"])) == dark
        assert view["behind"] == "rgb(255, 255, 255)"
