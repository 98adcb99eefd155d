"""The report in a real browser, over the DevTools protocol: each check passes on every page and fails on a page with its fault.

Of Chromium's flags, only what keeps it from the display, the sandbox that containers lack, and the network.
"""

import base64
import itertools
import json
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import websocket
from nbformat.v4 import new_output

from fgkd import records
from fgkd import study as studies
from fgkd.analysis import groups
from fgkd.report import pages, plots

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --remote-debugging-port=0"
).split()
PHONE, PAPER = 360, 718  # widths in CSS pixels: a small phone, and A4 within margins of 1 cm
PAGES = ("index", *studies.STAGES)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the report in")

# What is wrong on a page, in words; `lum` is WCAG 2's relative luminance.
SCRIPTS = {
    "formulas": """[...document.querySelectorAll('math, .formula')].filter(m => { const b = m.getBoundingClientRect();
        return m.querySelector('merror') || !m.matches('math, :has(math)') || b.width < 2 || b.height < 5 }).map(m => m.outerHTML.slice(0, 200))""",
    "pictures": """[...document.images].filter(i => { const b = i.getBoundingClientRect();
        return !i.naturalWidth || !i.naturalHeight || b.width < 20 || b.height < 20 }).map(i => i.alt + ' ' + i.src.slice(0, 80))""",
    "width": """document.scrollingElement.scrollWidth > %d ? [...document.querySelectorAll('body *')].filter(e =>
        e.getBoundingClientRect().right > %d).map(e => e.outerHTML.slice(0, 200)).concat([document.scrollingElement.scrollWidth]) : []"""
    % (PHONE, PHONE + 1),
    "print": """[...document.querySelectorAll('html, body *')].filter(e => {
        if (!e.checkVisibility({contentVisibilityAuto: true})) return e.closest('details:not(.table)');   // long tables are files
        const box = e.matches('html') || getComputedStyle(e).overflowX != 'visible';
        return e.getBoundingClientRect().right > innerWidth + 1 || box && e.scrollWidth > e.clientWidth + 1 }).map(e => e.outerHTML.slice(0, 200))""",
    "structure": """(() => {
        const levels = [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => +h.tagName[1]);
        return [
            ...[...document.images].filter(i => !i.alt.trim()).map(i => 'no alternative text: ' + i.src.slice(0, 80)),
            ...[...document.querySelectorAll('table')].filter(t => !t.querySelector('th[scope]')).map(t => 'no header cells: ' + t.textContent.slice(0, 80)),
            ...levels.flatMap((n, i) => n > (levels[i - 1] || 0) + 1 ? [`h${n} after h${levels[i - 1] || 0}`] : []),
            ...(levels.filter(n => n == 1).length == 1 ? [] : ['not one h1']),
            ...(document.documentElement.lang ? [] : ['no language']), ...(document.title.trim() ? [] : ['no title']),
            ...(document.querySelector('main') ? [] : ['no main part']),
            ...[...document.querySelectorAll('a[href], summary')].filter(a => !a.textContent.trim()).map(a => 'nameless: ' + a.outerHTML),
            ...[...document.querySelectorAll('[id]')].filter((e, i, all) => all.findIndex(o => o.id == e.id) < i).map(e => 'doubled id: ' + e.id)];
    })()""",
    "contrast": """(() => {
        const rgba = c => { const [r, g, b, a = 1] = c.match(/[\\d.]+/g).map(Number); return [r, g, b, a] };
        const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
        const paper = e => { const c = e ? rgba(getComputedStyle(e).backgroundColor) : [255, 255, 255, 1]; return c[3] == 1 ? c : over(c, paper(e.parentElement)) };
        const lum = c => [.2126, .7152, .0722].reduce((s, w, i) => s + w * (c[i] <= 10.31 ? c[i] / 3294.6 : ((c[i] / 255 + .055) / 1.055) ** 2.4), 0);
        const dark = matchMedia('(prefers-color-scheme: dark)').matches, ground = lum(paper(document.body));
        const said = e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim());
        const pale = [...document.querySelectorAll('body, body *')].filter(said).flatMap(e => {
            const under = paper(e), [a, b] = [lum(over(rgba(getComputedStyle(e).color), under)), lum(under)].sort((x, y) => y - x);
            return (a + .05) / (b + .05) < 4.5 ? [((a + .05) / (b + .05)).toFixed(2) + ': ' + e.outerHTML.slice(0, 120)] : [] });
        return (dark ? ground < .05 : ground > .8) ? pale : [...pale, 'the ground is ' + (dark ? 'not dark' : 'not light')];
    })()""",
    "focus": """(() => {
        const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();
        return e.matches('a, summary, [tabindex]') && s.outlineStyle != 'none' && parseFloat(s.outlineWidth) >= 1 && b.left >= 0 && b.top >= 0
            && b.width > 5 && b.right <= innerWidth ? [] : [e.outerHTML.slice(0, 200)];
    })()""",
}


class Tab:
    """A page of a headless Chromium; `tab("Page.reload")` sends a command of the protocol and returns its result."""

    def __init__(self, address):
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=30)
        self.ids, self.session, self.events, self.path = itertools.count(), {}, [], None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = {
            "sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        }
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params} | self.session))
        answer = self._until(lambda message: message.get("id") == number)
        assert "error" not in answer, answer
        return answer["result"]

    def _until(self, found):
        while not found(message := json.loads(self.socket.recv())):
            self.events.append(message)
        return message

    def evaluate(self, script):
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def show(self, path, *, width=1200, media="", dark=False, opened=True, fresh=False):
        """Load a page from a file, unless it is there and need not be fresh, and wait until its pictures are."""
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width == PHONE,
        )
        self(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        if fresh or path != self.path:
            self.events.clear()
            self.path = path
            self("Page.navigate", url=path.as_uri())
            if not self.told("Page.loadEventFired"):
                self.events.append(
                    self._until(lambda message: message.get("method") == "Page.loadEventFired")
                )
        self.evaluate(
            f"document.querySelectorAll('details').forEach(d => d.open = {json.dumps(opened)}); new Promise(requestAnimationFrame).then(() => 0)"
        )

    def told(self, method):
        return [e["params"] for e in self.events if e.get("method") == method]


def console(tab, path):
    tab.show(path)
    return (
        tab.told("Log.entryAdded")
        + tab.told("Runtime.exceptionThrown")
        + tab.told("Runtime.consoleAPICalled")
    )


def requests(tab, path):
    tab.show(path)
    urls = [e["request"]["url"] for e in tab.told("Network.requestWillBeSent")]
    assert path.as_uri() in urls
    return [url for url in urls if urlsplit(url).scheme not in ("file", "data")]


def links(tab, path):
    """Addresses of files that are not there, and of places within a page that it does not have."""
    tab.show(path)
    urls = map(
        urlsplit, tab.evaluate("[...document.querySelectorAll('[href], [src]')].map(e => e.href || e.src)")
    )
    here = [u for u in urls if u.scheme == "file"]
    lost = [u.path for u in here if not Path(unquote(u.path)).is_file()]
    return lost + [
        u.fragment
        for u in here
        if u.fragment
        and not tab.evaluate(f"!!document.getElementById(decodeURIComponent({json.dumps(u.fragment)}))")
    ]


def focus(tab, path):
    """The first three stops of the Tab key."""
    tab.show(path, fresh=True)
    wrong = []
    for _ in range(3):
        for kind in ("keyDown", "keyUp"):
            tab("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        wrong += tab.evaluate(SCRIPTS["focus"])
    return wrong


def script(name, **options):
    def check(tab, path):
        tab.show(path, **options)
        return tab.evaluate(SCRIPTS[name])

    return check


CHECKS = {
    "console": console,
    "requests": requests,
    "links": links,
    "focus": focus,
    "formulas": script("formulas"),
    "pictures": script("pictures"),
    "structure": script("structure"),
    "phone": script("width", width=PHONE),
    "print": script("print", width=PAPER, media="print", opened=False),
    "light": script("contrast"),
    "dark": script("contrast", dark=True),
}
FAULTS = {
    "console": [
        "<script>f()</script>",
        "<script>console.error('x')</script>",
        "<img src='none.png' alt='x'>",
    ],
    "requests": [
        "<img src='http://127.0.0.1:9/x.png' alt='x'>",
        "<style>@import 'http://127.0.0.1:9/x.css';</style>",
    ],
    "links": ["<a href='none.html'>x</a>", "<a href='#none'>x</a>"],
    "focus": [
        "<a href='#' style='outline: none'>x</a>",
        "<a href='#' style='position: absolute; left: -99px'>x</a>",
    ],
    "formulas": [
        "<math></math>",
        "<math style='display: none'><mi>x</mi></math>",
        "<span class='formula'><code>\\frac</code></span>",
    ],
    "pictures": [
        "<img src='data:image/png;base64,AAAA' alt='x'>",
        "<img src='data:image/svg+xml,<svg xmlns=%22http://www.w3.org/2000/svg%22/>' width='9' alt='x'>",
    ],
    "structure": [
        "<img src='data:,' alt=''>",
        "<table><tr><td>1</td></tr></table>",
        "<h3>x</h3>",
        "<h1>x</h1>",
        "<a href='#'></a>",
        "<p id='main'>x</p>",
    ],
    "phone": ["<div style='width: 400px'>x</div>", "<pre>" + "x" * 200 + "</pre>"],
    "print": [
        "<pre style='overflow: auto'>" + "x" * 200 + "</pre>",
        "<details><summary>x</summary><p>y</p></details>",
    ],
    "light": ["<p style='color: #999'>x</p>", "<style>body { background: #000; color: #fff }</style>"],
    "dark": [
        "<p style='color: #777'>x</p>",
        "<style>body { background: #fff; color: #000 }</style>",
        "<code style='background: #eee'>x</code>",
    ],
}

BLANK = """<!DOCTYPE html><html lang="en"><head><meta name="viewport" content="width=device-width"><title>x</title>
<style>:root { color-scheme: light dark } body { background: light-dark(#fff, #111); color: light-dark(#111, #eee) } a { color: inherit }</style></head>
<body><main id="main"><h1>x</h1>%s<p><a href="#main">a</a> <a href="#main">b</a> <a href="#main">c</a></p></main></body></html>"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory, wait_for):
    folder = tmp_path_factory.mktemp("chromium")
    ready, browser = (
        folder / "DevToolsActivePort",
        subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={folder}"], stderr=subprocess.DEVNULL),
    )
    try:
        address = wait_for(lambda: ready.exists() and ready.read_text().split(), 60)
        assert address, "Chromium did not start"
        tab = Tab("ws://127.0.0.1:{}{}".format(*address))
        yield tab
        tab.session = {}
        tab("Browser.close")
    finally:
        browser.terminate()
        browser.wait(20)


@pytest.fixture(scope="module")
def site(finished_folder, tmp_path_factory):
    """The pages of a report by name: the tiny study with figures, the committed notebook for the first cell of each stage, the students' failed."""
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGKD_RUNS", str(folder))
        shutil.copytree(finished_folder, folder, dirs_exist_ok=True)
        study = studies.load(str(folder / "tiny.yaml"))
        found = records.collect(study)
        points = groups.join_students_with_metrics(
            found["students"], records.with_tac(found["metrics"], found["teachers"])
        )
        plots.save(
            plots.metric_scatter(points, ["ratio12", "ssp", "tac"], study.teachers),
            study.folder / "figures",
            "against",
        )
        plots.save(plots.rho_heatmap(found["correlations"]), study.folder / "figures", "heat")
        states = {cell: {"state": "waiting", "seconds": None, "error": None} for cell in study.jobs()}
        shown = [next(c for c in states if c.stage == stage) for stage in studies.STAGES]
        for cell in shown:
            notebook = nbformat.read(studies.PROJECT / "notebooks" / f"{cell.notebook}.ipynb", 4)
            if cell.stage == "distill":
                picture = base64.b64encode((study.folder / "figures" / "heat.png").read_bytes()).decode()
                data = {"image/png": picture}, {"text/html": found["headline"].round(3).to_html()}
                notebook.cells[-2].outputs = [new_output("display_data", data=d) for d in data]
                notebook.cells[-2].outputs += [
                    new_output(
                        "error",
                        ename="ValueError",
                        evalue="x" * 200,
                        traceback=["\x1b[31mValueError\x1b[0m: " + "x" * 200],
                    )
                ]
            study.path(cell).mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, study.path(cell) / f"{cell.notebook}.ipynb")
            states[cell] |= {"state": "failed" if cell.stage == "distill" else "done", "seconds": 1.0}
        index = pages.build(study, states)
    return {"index": index} | {cell.stage: index.parent / f"{cell.id}.html" for cell in shown}


def found(tab, path):
    """What each check finds on a page, those that find nothing left out."""
    return {check: wrong for check, run in CHECKS.items() if (wrong := run(tab, path))}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(name, site, tab):
    assert found(tab, site[name]) == {}


def test_nothing_is_wrong_with_a_page_without_a_fault(tab, tmp_path):
    (tmp_path / "page.html").write_text(BLANK % "")
    assert found(tab, tmp_path / "page.html") == {}


@pytest.mark.parametrize(
    ("check", "fault"),
    [pytest.param(check, fault, id=check) for check, faults in FAULTS.items() for fault in faults],
)
def test_a_page_with_a_fault_fails(check, fault, tab, tmp_path):
    (tmp_path / "page.html").write_text(BLANK % fault)
    assert CHECKS[check](tab, tmp_path / "page.html")
