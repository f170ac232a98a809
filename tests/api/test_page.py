"""The page as people meet it: in a browser, on a desk and a phone, light and dark, by mouse and by keyboard."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api_browser import Browser, chromium
from api_eventually import eventually
from api_serving import serving
from api_site import NOTE, heartbeat, make_site
from arwkv_store.commands.noting import noted
from store_examples import example_dataset_info, write_example_dataset

AXE = (Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js").read_text()
DRAWN = "document.querySelectorAll('canvas').length && [...document.querySelectorAll('canvas')].every(Chart.getChart)"
# Each view, and what is there once it is complete.
VIEWS = {
    "/#/": "document.querySelectorAll('tbody tr').length === 6",
    "/#/datasets/sample": f"document.querySelector('tbody tr') && {DRAWN}",
    "/#/datasets/damaged": f"document.querySelector('.badge.bad') && {DRAWN}",
    "/#/datasets/damaged/shards/0": f"document.querySelector('figure') && {DRAWN}",
    "/#/datasets/sample/samples/0": "document.querySelector('.bars li')",
    "/#/runs": "document.querySelector('tbody tr')",
    "/#/runs/runs-student": f"document.querySelector('.pair') && {DRAWN}",
    "/#/compare/runs-student/runs-other": f"document.querySelector('figure') && {DRAWN}",
    "/#/work": "document.querySelector('tbody tr')",
    "/#/datasets/growing": f"document.querySelector('tbody tr') && {DRAWN}",
    "/#/datasets/tokens": f"document.querySelector('[aria-label=Extensions]') && {DRAWN}",
    "/#/datasets/absent": "document.querySelector('[role=alert]')",
    "/docs": "document.querySelector('.operation')",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is served."""
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def site(root: Path) -> Iterator[str]:
    """The address of a service over it."""
    flags = ["--root", str(root), "--scan-interval-s", "0.2", "--verify-mb-per-s", "0"]
    with serving(*flags, cache=root.parent / "cache") as (url, _):
        yield url


@pytest.fixture(scope="module")
def open_browser() -> Iterator[Browser]:
    """One for all tests: it takes a second to start."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def browser(open_browser: Browser) -> Browser:
    """The browser, with nothing said against the page yet."""
    open_browser.faults.clear()
    open_browser.asked.clear()
    open_browser.wear("light", 1280)
    return open_browser


LOOKS = [("light", 1280), ("dark", 390)]
OTHER_LOOKS = [pytest.param("dark", 1280, marks=pytest.mark.slow), pytest.param("light", 390, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("colours", "width"), LOOKS + OTHER_LOOKS)
@pytest.mark.parametrize("view", VIEWS)
def test_view_is_accessible_fits_and_stays_at_home(
    browser: Browser, site: str, view: str, colours: str, width: int
) -> None:
    """axe-core finds nothing, nothing is wider than the window, no other host is asked."""
    browser.wear(colours, width)
    browser.open(site + view, VIEWS[view])
    browser.do("document.querySelectorAll('details').forEach(one => { one.open = true })")
    browser.do(AXE)
    found = browser.do("axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))]))")
    assert found == []
    assert browser.do("document.documentElement.scrollWidth - innerWidth") <= 0
    # What is wrong with the view of an absent dataset may be said only when the next is open.
    assert [fault for fault in browser.faults if "/datasets/absent" not in fault] == []
    assert all(address.startswith((site, "about:", "data:")) for address in browser.asked)


def test_datasets_are_shown_at_a_glance(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/", VIEWS["/#/"])
    names = browser.do("[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].querySelector('a').innerText)")
    assert names == ["damaged", "growing", "many", "quantized", "sample", "tokens"]
    assert "1 faulty" in browser.text("tbody")
    assert "4 / 10" in browser.text("tbody")
    browser.do("document.querySelector('#search').focus()")
    browser.do("document.execCommand('insertText', false, 'SAM')")
    browser.wait("document.querySelectorAll('tbody tr').length === 1")
    assert browser.text("tbody a") == "sample"


def test_dataset_shows_what_became_of_its_corpus(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/datasets/sample", VIEWS["/#/datasets/sample"])
    said = browser.text("#corpus")
    for words in ("7 duplicate", "33,000 count in the loss", "41 assistant", "README.md (not a data file)"):
        assert words in said
    browser.open(f"{site}/#/datasets/growing", VIEWS["/#/datasets/sample"])
    assert browser.text("#corpus") == ""


def test_table_sorts_pages_and_filters_at_the_service(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/datasets/many", "document.querySelectorAll('section tbody tr').length === 25")
    browser.do("[...document.querySelectorAll('th button')].find(b => b.innerText.startsWith('Part')).click()")
    first = "document.querySelector('section tbody tr').cells[0].innerText"
    browser.wait(f"{first} === '119'")
    assert browser.do("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    browser.do("[...document.querySelectorAll('button')].find(b => b.innerText === 'More').click()")
    browser.wait("document.querySelectorAll('section tbody tr').length === 50")
    browser.do("document.querySelector('#state').value = 'corrupt'")
    browser.do("document.querySelector('#state').dispatchEvent(new Event('change'))")
    browser.wait("document.body.innerText.includes('No shards found')")


def test_damaged_shard_is_named_with_its_reason(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/datasets/damaged", VIEWS["/#/datasets/damaged"])
    assert "part-000001.arrow" in browser.text()
    assert "make the part again" in browser.text()
    assert "1 faulty" in browser.text()


def test_verify_button_reads_a_shard_and_shows_what_it_found(browser: Browser, site: str, root: Path) -> None:
    data = root / "growing" / "shards" / "part-000002.arrow"
    good, status = data.read_bytes(), data.stat()
    button = "document.querySelector('[aria-label=\"Verify part {} now\"]')"
    browser.open(f"{site}/#/datasets/growing", button.format(2))
    assert browser.do(f"{button.format(0)}.innerText") == "verify"
    browser.do(f"{button.format(0)}.click()")
    browser.wait(f"/\\d\\d:\\d\\d/.test({button.format(0)}.innerText)")
    with data.open("r+b") as file:
        file.seek(len(good) // 2)
        file.write(bytes([good[len(good) // 2] ^ 1]))
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
    browser.do(f"{button.format(2)}.click()")
    browser.wait("document.querySelector('[aria-label^=Shards] tbody').innerText.includes('SHA-256')")
    data.write_bytes(good)


def test_charts_show_the_services_figures(browser: Browser, site: str) -> None:
    stats = httpx.get(f"{site}/v1/datasets/sample/stats").json()
    browser.open(f"{site}/#/datasets/sample", VIEWS["/#/datasets/sample"])
    titles = browser.do("[...document.querySelectorAll('figure h2')].map(h => h.innerText)")
    assert titles[:4] == [
        "Tokens over time",
        "Entropy of the teacher",
        "Mass kept by the stored entries",
        "Bytes per token",
    ]
    drawn = browser.do("Chart.getChart(document.querySelectorAll('canvas')[1]).data.datasets[0].data")
    assert drawn == stats["entropy_histogram"]
    browser.do("document.querySelectorAll('figure details')[1].open = true")
    browser.wait("document.querySelector('figure details table')")
    rows = browser.do("document.querySelectorAll('figure details')[1].querySelectorAll('tbody tr').length")
    assert rows == len(stats["entropy_histogram"])


CHART = (
    "Chart.getChart([...document.querySelectorAll('figure')].find(f => f.innerText.includes({}))"
    ".querySelector('canvas'))"
)


def test_quantization_error_has_a_chart_of_its_own(browser: Browser, site: str) -> None:
    stats = httpx.get(f"{site}/v1/datasets/quantized/stats").json()
    browser.open(f"{site}/#/datasets/quantized", VIEWS["/#/datasets/sample"])
    rms, error = CHART.format("'Hidden states'"), CHART.format("'Quantization'")
    assert browser.do(f"{rms}.data.datasets.map(d => d.data)") == [list(stats["hidden_rms"].values())]
    errors = list(stats["hidden_worst_channel_error"].values())
    assert browser.do(f"{error}.data.datasets.map(d => d.data)") == [errors]
    assert browser.do(f"{error}.scales.y.max") < 2 * max(errors)  # the bars fill an axis of their own


def test_shard_has_its_statistics_and_is_one_click_away(browser: Browser, site: str) -> None:
    stats = httpx.get(f"{site}/v1/datasets/sample/shards/3/stats").json()
    browser.open(f"{site}/#/datasets/sample", VIEWS["/#/datasets/sample"])
    browser.do("[...document.querySelectorAll('tbody a')].find(a => a.innerText === '3').click()")
    browser.wait("document.querySelector('h1').innerText === 'Part 3' && document.querySelector('figure')")
    browser.wait(DRAWN)
    drawn = browser.do("Chart.getChart(document.querySelector('canvas')).data.datasets[0].data")
    assert drawn == stats["entropy_histogram"]


def test_long_sample_is_read_on_and_on(browser: Browser, tmp_path: Path) -> None:
    info = example_dataset_info(samples=1, samples_per_part=1, layers=(), max_length=4096)
    write_example_dataset(tmp_path / "root" / "long", info=info, length=1200)
    tokens, more = "document.querySelectorAll('.token').length", "document.querySelector('.explorer .controls button')"
    with serving("--root", str(tmp_path / "root"), cache=tmp_path) as (url, _):
        sample = f"{url}/v1/datasets/long/samples/0"
        token_count = httpx.get(f"{sample}?limit=1").json()["n_tokens"]
        assert token_count > 1024
        browser.open(f"{url}/#/datasets/long/samples/0", VIEWS["/#/datasets/sample/samples/0"])
        for shown in (512, 1024, token_count):
            browser.wait(f"{tokens} === {shown}")
            browser.do(f"{more}.click()")
        assert browser.do(f"{more}.hidden")
        browser.do("document.querySelectorAll('.token')[700].focus()")
        (token,) = httpx.get(f"{sample}?first=700&limit=1").json()["tokens"]
        assert f"#{token['id']}" in browser.text(".inspector")


def test_sample_is_its_text_coloured_by_entropy(browser: Browser, site: str) -> None:
    preview = httpx.get(f"{site}/v1/datasets/sample/samples/3?limit=512&top=10").json()
    browser.open(f"{site}/#/datasets/sample/samples/3", VIEWS["/#/datasets/sample/samples/0"])
    shown = browser.do("document.querySelector('.tokens').textContent")
    assert shown == "".join(token["text"] for token in preview["tokens"])
    colour = "getComputedStyle(document.querySelectorAll('.token')[{}]).backgroundColor"
    order = sorted(range(1, len(preview["tokens"])), key=lambda at: preview["tokens"][at]["entropy"])
    sure, unsure = browser.do(colour.format(order[0])), browser.do(colour.format(order[-1]))
    assert sure != unsure
    browser.hover(f".token:nth-child({order[-1] + 1})")
    token = preview["tokens"][order[-1]]
    words = json.dumps(f"entropy {token['entropy']:.3g}")
    browser.wait(f"document.querySelector('.inspector').innerText.includes({words})")
    assert browser.do("document.querySelectorAll('.bars li').length") == len(token["alternatives"])


def test_keyboard_reaches_everything(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/", VIEWS["/#/"])
    focused = "document.activeElement.{}"
    browser.press("Tab")
    assert browser.do(focused.format("innerText")) == "Skip to content"
    browser.press("Enter")
    assert browser.do(focused.format("id")) == "content"
    browser.press("Tab")
    assert browser.do(focused.format("id")) == "search"
    browser.press("Tab")  # the first heading that sorts
    browser.press("Enter")
    browser.wait("document.querySelector('th[aria-sort=descending]')")
    browser.wait("document.querySelector('tbody a').innerText === 'tokens'")
    for _ in range(20):
        browser.press("Tab")
        if browser.do(focused.format("innerText")) == "sample":
            break
    browser.press("Enter")
    browser.wait("document.querySelector('h1').innerText === 'sample'")
    browser.open(f"{site}/#/datasets/sample/samples/0", VIEWS["/#/datasets/sample/samples/0"])
    browser.do("document.querySelector('.token[tabindex=\"0\"]').focus()")
    for key, position in (("ArrowRight", 2), ("End", 255), ("Home", 0), ("ArrowDown", 10)):
        browser.press(key)
        assert browser.do("[...document.querySelectorAll('.token')].indexOf(document.activeElement)") == position
    assert browser.do("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_colours_can_be_chosen_and_are_remembered(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/", VIEWS["/#/"])
    page = "getComputedStyle(document.documentElement).backgroundColor"
    light = browser.do(page)
    for _ in range(2):
        browser.do("document.querySelector('#theme').click()")
    assert browser.do("document.querySelector('#theme').ariaLabel") == "Theme: dark"
    assert browser.do(page) != light
    browser.open(f"{site}/#/runs", VIEWS["/#/runs"])
    assert browser.do(page) != light
    browser.do("localStorage.clear()")


def test_run_is_followed_while_it_goes(browser: Browser, site: str, root: Path) -> None:
    run = root / "runs" / "live"
    shutil.copytree(root / "runs" / "student", run)
    eventually(lambda: httpx.get(f"{site}/v1/runs/runs-live/metrics").is_success)
    browser.open(f"{site}/#/runs/runs-live", VIEWS["/#/runs/runs-student"])
    assert "name, value=None" in browser.text(".pairs")
    points = "Chart.getChart(document.querySelector('canvas')).data.datasets.map(d => d.data.length)"
    assert browser.do(points) == [40, 40]
    assert "ended" in browser.text(".heading")
    (run / "heartbeat-0.json").write_bytes(heartbeat("training", at_s=time.time(), done=41, total=80).to_bytes())
    browser.wait("document.querySelector('.heading').innerText.includes('running')")
    with (run / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Once ", "teacher": "upon", "student": "upom"}) + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "distill", "step": 400, "loss": 0.0123, "eval_kl": 0.0456}\n')
    browser.wait(f"{points}.join() === '40,41'")
    assert "0.01230" in browser.text(".tiles")
    assert "0.04560" in browser.text(".tiles")
    browser.wait("document.querySelector('.pairs').innerText.includes('upom')")
    shutil.rmtree(run)


def test_run_is_followed_again_after_the_service_was_away(browser: Browser, site: str, root: Path) -> None:
    browser.open(f"{site}/#/runs/runs-student", VIEWS["/#/runs/runs-student"])
    browser.do("window.realFetch = window.fetch; window.fetch = () => Promise.reject(new TypeError('away'))")
    os.utime(root / "runs" / "student" / "metrics.jsonl")  # the service says so, and the page asks
    browser.wait("document.querySelector('.heading [role=status]').innerText === 'no connection'")
    browser.do("window.fetch = window.realFetch")
    browser.wait("document.querySelector('.heading [role=status]').innerText === ''")


def test_run_says_what_it_is_and_how_its_layers_do(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/runs/runs-student", VIEWS["/#/runs/runs-student"])
    about = browser.text("[aria-label=Settings]")
    for said in ("preset\narwkv", "learning_rate\n0.001", "base.name\nQwen2.5-0.5B", "Stage align\nsteps 400"):
        assert said in about, about
    figure = "[...document.querySelectorAll('figure')].find(f => f.innerText.includes('by layer'))"
    layers = f"Chart.getChart({figure}.querySelector('canvas'))"
    assert browser.do(f"{layers}.data.datasets.map(d => d.label)") == [f"layer {number}" for number in range(8)]
    assert browser.do(f"{layers}.data.datasets.every(d => !d.tension)")
    browser.open(f"{site}/#/runs/runs-other", DRAWN)
    assert "stopped" in browser.text(".heading")
    assert "disk full" in browser.text(".tiles")


def test_runs_are_compared_side_by_side(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/runs", VIEWS["/#/runs"])
    for name in ("runs-student", "runs-other"):
        browser.do(f"document.querySelector('[aria-label=\"Compare {name}\"]').click()")
    browser.do("document.querySelector('a.button').click()")
    browser.wait(f"document.querySelector('figure') && {DRAWN}")
    assert "learning_rate" in browser.text("section.card")
    assert "0.0002" in browser.text("section.card")
    assert "preset" not in browser.text("section.card")
    labels = browser.do("Chart.getChart(document.querySelector('canvas')).data.datasets.map(d => d.label)")
    assert sorted(labels) == ["runs-other, align", "runs-student, align", "runs-student, distill"]


def test_running_capture_is_shown_as_it_goes(browser: Browser, site: str, root: Path) -> None:
    told = {"done": 4, "total": 10, "tokens_per_s": 1234.5, "left_s": 3725.0}
    place = root / "growing" / "heartbeat-0.json"
    place.write_bytes(heartbeat("capture", at_s=time.time(), **told).to_bytes())
    for view in ("/#/work", "/#/datasets/growing"):
        browser.open(site + view, "document.querySelector('[aria-label=Captures] tbody tr')")
        browser.wait("document.querySelector('[aria-label=Captures]').innerText.includes('running')")
        said = browser.text("[aria-label=Captures]")
        for figure in ("4 / 10", "1.23K tokens/s", "1 h 2 min", "none"):
            assert figure in said, said
    place.write_bytes(
        heartbeat("capture", at_s=time.time(), **{**told, "done": 5, "errors": 2, "message": "odd"}).to_bytes()
    )
    browser.wait("document.querySelector('[aria-label=Captures]').innerText.includes('5 / 10')")
    assert "odd" in browser.text("[aria-label=Captures]")
    place.write_bytes(heartbeat("capture", at_s=time.time() - 600, **told).to_bytes())
    browser.wait("document.querySelector('[aria-label=Captures]').innerText.includes('stopped')")


def test_a_single_point_in_time_has_a_readable_axis(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/datasets/sample", VIEWS["/#/datasets/sample"])
    axis = "Chart.getChart(document.querySelector('canvas')).scales.x"
    browser.do(
        "(c => { c.data.datasets[0].data = c.data.datasets[0].data.slice(0, 1); c.update('none') })"
        "(Chart.getChart(document.querySelector('canvas')))"
    )
    assert browser.do(f"{axis}.ticks.length") == 1
    assert browser.do(f"{axis}.max - {axis}.min") == 2


def test_extensions_of_a_dataset_are_shown(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/datasets/tokens", VIEWS["/#/datasets/tokens"])
    rows = browser.do("[...document.querySelectorAll('[aria-label=Extensions] tbody tr')].map(r => r.innerText)")
    assert len(rows) == 3
    for row, words in zip(rows, (["beginning", "+60"], ["+50", "until"], ["under way", "+4", "since"]), strict=True):
        assert all(word in row for word in words), row
    browser.open(f"{site}/#/datasets/sample", VIEWS["/#/datasets/sample"])
    assert not browser.do("document.querySelector('[aria-label=Extensions]')")


def test_notes_are_shown_as_text_and_tags_filter(browser: Browser, site: str) -> None:
    browser.open(f"{site}/#/datasets/sample", VIEWS["/#/datasets/sample"])
    assert browser.do("document.querySelector('.note').textContent") == NOTE
    assert browser.do("document.querySelector('.note').children.length") == 0
    assert "Edit" not in browser.text("[aria-label=Notes]")
    browser.open(f"{site}/#/datasets/many", "document.querySelector('[aria-label=Notes]')")
    assert browser.do("document.querySelector('[aria-label=Notes]').hidden")
    for view, rows in (("/#/", 6), ("/#/runs", 2)):
        browser.open(site + view, f"document.querySelectorAll('tbody tr').length === {rows}")
        browser.do("document.querySelector('[aria-label=\"Only with tag baseline\"]').click()")
        browser.wait("document.querySelectorAll('tbody tr').length === 1")
        browser.do("document.querySelector('[aria-label=\"Drop tag baseline\"]').click()")
        browser.wait(f"document.querySelectorAll('tbody tr').length === {rows}")


NOTES_OF = {"datasets/sample": "sample", "runs/runs-student": "runs/student"}
# From now on, what answers a question about notes is held up.
HOLD_NOTES = """
[window.fetched, window.held] = [fetch, []];
window.fetch = async (path, asked) => {
  const answer = await fetched(path, asked);
  if (String(path).endsWith("/notes")) await new Promise((release) => held.push(release));
  return answer;
}
"""


@pytest.mark.parametrize("view", NOTES_OF)
def test_notes_are_edited_with_a_key_and_no_words_are_lost(
    browser: Browser, root: Path, tmp_path: Path, view: str
) -> None:
    folder = root / NOTES_OF[view]
    kept = (folder / "notes.json").read_bytes()
    button = "[...document.querySelectorAll('[aria-label=Notes] button')].find(b => b.innerText === {})"
    text, tags = (f"document.querySelector('#note-{name}')" for name in ("text", "tags"))
    with serving("--root", str(root), "--api-key", "sesame", cache=tmp_path) as (url, _):
        browser.open(f"{url}/", "document.querySelector('dialog').open")
        browser.do("document.querySelector('#key').value = 'sesame'")
        browser.do("document.querySelector('dialog button').click()")
        browser.wait(VIEWS["/#/"])
        browser.do(f"location.hash = '#/{view}'")
        browser.wait(button.format("'Edit notes'"))
        browser.do(f"{button.format(repr('Edit notes'))}.click()")
        noted(str(folder), "theirs", ("new",), ())
        browser.do(f"{text}.value = 'mine'; {tags}.value = 'a, b a'")
        browser.do(AXE)
        assert browser.do("axe.run().then(r => r.violations.map(v => v.id))") == []
        browser.do(f"{button.format(repr('Save'))}.click()")
        browser.wait("document.querySelector('.theirs').innerText.includes('theirs')")
        assert browser.do(f"{text}.value") == "mine"
        assert noted(str(folder), None, (), ()).text == "theirs"
        browser.do(f"{button.format(repr('Save'))}.click()")
        browser.wait("document.querySelector('.note')?.innerText === 'mine'")
        assert noted(str(folder), None, (), ()).tags == ("a", "b")
        browser.do(HOLD_NOTES)
        noted(str(folder), "later", (), ())
        browser.wait("window.held.length")
        browser.do(f"{button.format(repr('Edit notes'))}.click()")
        browser.do(f"{text}.value = 'half a'")
        browser.do("window.fetch = window.fetched; window.held.forEach(release => release())")
        browser.do("new Promise(resolve => setTimeout(resolve, 100))")
        browser.do(f"{text}.value += ' word'")
        browser.do(f"{button.format(repr('Save'))}.click()")
        browser.wait("document.querySelector('.theirs').innerText.includes('later')")
        assert browser.do(f"{text}.value") == "half a word"
        browser.do(f"{tags}.value = 'UPPER'")
        browser.do(f"{button.format(repr('Save'))}.click()")
        browser.wait("document.querySelector('.noting [role=status]').innerText.includes('tags')")
        browser.do(f"{button.format(repr('Cancel'))}.click()")
        browser.wait("document.querySelector('.note')?.innerText === 'later'")
        assert browser.do("document.activeElement.innerText") == "Edit notes"
        assert noted(str(folder), None, (), ()).text == "later"
    (folder / "notes.json").write_bytes(kept)


def test_operations_can_be_tried_and_pasted(browser: Browser, site: str) -> None:
    browser.open(f"{site}/docs", VIEWS["/docs"])
    offered = httpx.get(f"{site}/openapi.json").json()["paths"]
    assert browser.do("document.querySelectorAll('.operation').length") == sum(map(len, offered.values()))
    form = "document.querySelector('button[aria-label=\"Send GET /v1/datasets/{name}/shards\"]').form"
    browser.do(f"{form}.closest('details').open = true")
    browser.do(f"{form}.querySelector('[id$=name]').value = 'many'")
    browser.do(f"{form}.querySelector('[id$=limit]').value = '2'")
    browser.do(f"{form}.requestSubmit()")
    browser.wait(f"{form}.nextSibling.innerText.includes('200 OK')")
    command, *_, answer = browser.do(f"[...{form}.nextSibling.querySelectorAll('pre')].map(p => p.innerText)")
    pasted = subprocess.run(command, shell=True, capture_output=True, check=True, timeout=60).stdout
    assert json.loads(answer) == json.loads(pasted)
    assert len(json.loads(pasted)["items"]) == 2


def test_key_is_asked_for_once(browser: Browser, root: Path, tmp_path: Path) -> None:
    with serving("--root", str(root), "--api-key", "sesame", cache=tmp_path) as (url, _):
        browser.open(f"{url}/", "document.querySelector('dialog').open")
        browser.do("document.querySelector('#key').value = 'sesame'")
        browser.do("document.querySelector('dialog button').click()")
        browser.wait(VIEWS["/#/"])
        browser.open(f"{url}/#/datasets/sample", VIEWS["/#/datasets/sample"])
        assert browser.do("document.querySelector('dialog').open") is False
        browser.do("window.saved = []; HTMLAnchorElement.prototype.click = function () { saved.push(this.download) }")
        browser.do("window.kept = []; URL.createObjectURL = (blob) => { kept.push(blob.size); return 'blob:' }")
        arrow = "document.querySelector('[aria-label=\"Arrow file of part 0\"]')"
        browser.do(f"{arrow}.dispatchEvent(new MouseEvent('click', {{ cancelable: true, bubbles: true }}))")
        browser.wait("window.saved.length === 1")
        assert browser.do("window.saved[0]") == "part-000000.arrow"
        stored = (root / "sample" / "shards" / "part-000000.arrow").stat().st_size
        assert browser.do("window.kept[0]") == stored
        assert "sesame" not in browser.do("JSON.stringify(localStorage) + document.cookie + location")
