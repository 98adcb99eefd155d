"""The report in a real browser, over the DevTools protocol.

Each check passes on every page and fails on a page with its fault; those that look at a page are in
`browser.js`. Of Chromium's flags, only what keeps it from the display, the sandbox that containers lack, and
the network.
"""

import base64
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import attacks
import nbformat
import pytest
import websocket
from nbformat.v4 import new_output

from fgkd import study as studies
from fgkd.analysis import records
from fgkd.report import pages, plots

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
PHONE, PAPER = 360, 718  # widths in CSS pixels: a small phone, and A4 within margins of 1 cm
PAGES = ("index", "claims", *studies.STAGES)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open the report in")

CHECKS_SOURCE = Path(__file__).with_name("browser.js").read_text()


class Tab:
    """A page of a headless Chromium; `tab("Page.reload")` sends a command and returns its result."""

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

    def _until(self, condition):
        while not condition(message := json.loads(self.socket.recv())):
            self.events.append(message)
        return message

    def evaluate(self, script):
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def show(self, path, *, width=1200, media="", dark=False, opened=True, fresh=False):
        """Load a page from a file and wait for its images; a page that is there is loaded only if `fresh`."""
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
        self.evaluate(f"document.querySelectorAll('details').forEach(d => d.open = {json.dumps(opened)})")
        self.evaluate("new Promise(requestAnimationFrame).then(() => 0)")

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
        wrong += tab.evaluate(f"{CHECKS_SOURCE}.focus()")
    return wrong


def script(name, **options):
    def check(tab, path):
        tab.show(path, **options)
        return tab.evaluate(f"{CHECKS_SOURCE}.{name}({PHONE})")

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

BLANK = """<!DOCTYPE html><html lang="en"><head>
<meta name="viewport" content="width=device-width"><title>x</title>
<style>
:root { color-scheme: light dark }
body { background: light-dark(#fff, #111); color: light-dark(#111, #eee) }
a { color: inherit }
</style></head>
<body><main id="main"><h1>x</h1>%s
<p><a href="#main">a</a> <a href="#main">b</a> <a href="#main">c</a></p></main>
</body></html>"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory, wait_for):
    folder = tmp_path_factory.mktemp("chromium")
    ready = folder / "DevToolsActivePort"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}"]
    browser = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        address = wait_for(lambda: ready.exists() and ready.read_text().split(), 60)
        assert address, "Chromium did not start"
        tab = Tab("ws://127.0.0.1:{}{}".format(*address))
        yield tab
        tab.session = {}
        tab("Browser.close")
        tab.socket.close()
    finally:
        browser.terminate()
        browser.wait(20)


@pytest.fixture(scope="module")
def site(finished_folder, tmp_path_factory):
    """The pages of a report by name, with the committed notebook of each stage; the students' failed."""
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGKD_RUNS", str(folder))
        shutil.copytree(finished_folder, folder, dirs_exist_ok=True)
        study = studies.load(str(folder / "tiny.yaml"))
        states = {job: {"state": "waiting", "seconds": None, "error": None} for job in study.jobs()}
        shown = {stage: next(job for job in states if job.stage == stage) for stage in studies.STAGES}
        for stage, job in shown.items():
            notebook = nbformat.read(studies.PROJECT / "notebooks" / f"{job.notebook}.ipynb", 4)
            if stage == "distill":
                notebook.cells[-2].outputs = failed_outputs(records.collect(study), folder)
            study.path(job).mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, study.path(job) / f"{job.notebook}.ipynb")
            states[job] |= {"state": "failed" if stage == "distill" else "done", "seconds": 1.0}
        index = pages.build(study, states)
    site = {"index": index, "claims": index.with_name("claims.html")}
    return site | {stage: index.parent / f"{job.id}.html" for stage, job in shown.items()}


def failed_outputs(tables, folder):
    """A figure, a wide table and an error with lines too long for a phone."""
    plots.save(plots.rho_heatmap(tables["correlations"]), folder, "heat")
    image = base64.b64encode((folder / "heat.png").read_bytes()).decode()
    message = "x" * 200
    trace = [f"\x1b[31mValueError\x1b[0m: {message}"]
    return [
        new_output("display_data", data={"image/png": image}),
        new_output("display_data", data={"text/html": tables["headline"].round(3).to_html()}),
        new_output("error", ename="ValueError", evalue=message, traceback=trace),
    ]


def faults(tab, path):
    """What each check finds on a page, those that find nothing left out."""
    results = {check: run(tab, path) for check, run in CHECKS.items()}
    return {check: wrong for check, wrong in results.items() if wrong}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_a_page(name, site, tab):
    assert faults(tab, site[name]) == {}


def test_nothing_is_wrong_with_a_page_without_a_fault(tab, tmp_path):
    (tmp_path / "page.html").write_text(BLANK % "")
    assert faults(tab, tmp_path / "page.html") == {}


@pytest.mark.parametrize(
    ("check", "fault"),
    [pytest.param(check, fault, id=check) for check, faults in FAULTS.items() for fault in faults],
)
def test_a_page_with_a_fault_fails(check, fault, tab, tmp_path):
    (tmp_path / "page.html").write_text(BLANK % fault)
    assert CHECKS[check](tab, tmp_path / "page.html")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return attacks.hostile_site(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("policy", ["", "no policy"])
@pytest.mark.parametrize("name", ["index", "claims", "run"])
def test_nothing_that_stands_in_a_study_is_executed_or_loaded(name, policy, hostile, tab):
    """The allow list holds without the policy that every page has, too."""
    page = hostile[name]
    if policy:
        page = page.with_name(f"bare-{page.name}")
        page.write_text(re.sub("<meta http-equiv=.*", "", hostile[name].read_text(), count=1))
    assert requests(tab, page) == []
    tab.evaluate("document.querySelectorAll('*').forEach(e => e.closest('a[href]') || e.click?.())")
    tab.show(page)
    assert tab.evaluate("location.href") == page.as_uri()
    assert tab.evaluate("document.title") != "PWNED" and not tab.told("Runtime.exceptionThrown")


def test_the_policy_of_a_page_stops_a_script_that_were_in_it(hostile, tab, tmp_path):
    for name, path in hostile.items():
        (tmp_path / "page.html").write_text(
            path.read_text().replace("<h1", f"<script>{attacks.CODE}</script><h1")
        )
        tab.show(tmp_path / "page.html", fresh=True)
        assert tab.evaluate("document.title") != "PWNED", name
