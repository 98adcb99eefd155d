r"""A hostile study as a report: each of ATTACKS in every place of its index and of a notebook's page.

An attack that succeeds calls `f()`, which pages do not have, sets the title to 'PWNED', or leaves the page.
"""

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from fgkd.report import site

CODE = "document.title='PWNED'"
ATTACKS = [
    f"<script>{CODE}</script>",
    f"<ScRiPt >{CODE}</sCrIpT foo>",
    f"<script\x0c>{CODE}</script>",
    f"<scr<script>ipt>{CODE}</script>",
    f"<img src=x onerror={CODE}>",
    f"<img/src=x/onerror={CODE}>",
    f"<img src=x\tonerror\n=\n{CODE}>",
    f'<img src="data:image/png;base64,AA" onerror="{CODE}" alt="">',
    f"<svg onload={CODE}>",
    f"<svg><script>{CODE}</script></svg>",
    f"<svg><animate onbegin={CODE} attributeName=x dur=1s>",
    f'<svg><use href="data:image/svg+xml,<svg id=x onload={CODE}>#x">',
    f"<svg></p><style><g title='</style><img src=x onerror={CODE}>'>",
    f"<body onload={CODE}>",
    f"<input autofocus onfocus={CODE}>",
    f"<details open ontoggle={CODE}>x</details>",
    f"<video><source onerror={CODE}></video>",
    f"<audio src=x onerror={CODE}></audio>",
    f"<b style='animation:x' onanimationstart={CODE}>x</b>",
    f"<style>@keyframes x{{}}</style><b style='animation-name:x' onanimationstart={CODE}>x</b>",
    f"<iframe src='javascript:parent.{CODE}'></iframe>",
    f"<iframe srcdoc='<script>parent.{CODE}</script>'></iframe>",
    f"<object data='javascript:{CODE}'></object>",
    f"<object data='data:text/html,<script>parent.{CODE}</script>'></object>",
    "<embed src='http://127.0.0.1:9/x.swf'>",
    f"<form action='javascript:{CODE}'><button autofocus>x</button></form>",
    f"<form><button formaction='javascript:{CODE}'>x</button></form>",
    f"<isindex action='javascript:{CODE}' type=image>",
    "<base href='http://127.0.0.1:9/'>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    f"<meta http-equiv=refresh content='0;url=javascript:{CODE}'>",
    "<link rel=stylesheet href='http://127.0.0.1:9/x.css'>",
    "<style>@import 'http://127.0.0.1:9/x.css'; body { background: url(http://127.0.0.1:9/x.png) }</style>",
    "<b style='background:url(http://127.0.0.1:9/x.png);position:fixed;inset:0'>x</b>",
    "<img src='http://127.0.0.1:9/x.png' srcset='http://127.0.0.1:9/y.png 2x'>",
    "<table background='http://127.0.0.1:9/x.png'><tr><td>x</table>",
    f"<a href='javascript:{CODE}' id=click>x</a>",
    f"<a href=' &#106;ava&Tab;script&colon;{CODE}'>x</a>",
    f"<a href='data:text/html,<script>{CODE}</script>'>x</a>",
    f"<a href='vbscript:{CODE}'>x</a> [x](javascript:{CODE}) [y](<javascript:{CODE}>)",
    f"<math href='javascript:{CODE}'>x</math>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--><img src=x onerror={CODE}>'>",
    f"<math><annotation-xml encoding='text/html'><script>{CODE}</script></annotation-xml></math>",
    f"<math><maction actiontype='statusline#http://x' xlink:href='javascript:{CODE}'>x</maction></math>",
    f"$\\text{{<script>{CODE}</script>}}$",
    f"$\\mbox{{<img/src=x/onerror={CODE}>}}$ $\\hbox{{<svg/onload={CODE}>}}$",
    f"$\\textbf{{<script>{CODE}</script>}}$ $\\texttt{{<script>{CODE}</script>}}$",
    f"$x \\tag{{<img/src=x/onerror={CODE}>}}$ $\\operatorname{{<svg/onload={CODE}>}}$",
    f"$\\href{{javascript:{CODE}}}{{x}}$ $\\class{{x' onclick='{CODE}}}{{x}}$",
    "$\\style{position:fixed;background:url(http://127.0.0.1:9/x)}{x}$",
    f"$\\color{{'><svg/onload={CODE}>}}x$",
    f"$$\\begin{{array}}{{'><svg/onload={CODE}>}}x\\end{{array}}$$",
    f"`<script>{CODE}</script>`</code></pre><script>{CODE}</script>",
    "{{7*7}} {% raw %} ${7*7} <%= 7*7 %> {{ self.__init__.__globals__ }} {% include '/etc/passwd' %}",
    f"--><script>{CODE}</script><!-- <!--><script>{CODE}</script>",
    f"<!-- unclosed <script>{CODE}</script>",
    f"<![CDATA[<script>{CODE}</script>]]> <?x <script>{CODE}</script> ?> <!x <script>{CODE}</script>>",
    f"</title></style></textarea></noscript></main></body><script>{CODE}</script>",
    f"<noscript><p title='</noscript><img src=x onerror={CODE}>'></noscript>",
    f"<template><script>{CODE}</script></template><slot onslotchange={CODE}></slot>",
    f"<textarea><img title='</textarea><img src=x onerror={CODE}>'></textarea>",
    f"&lt;script&gt;{CODE}&lt;/script&gt; &#60;script&#62;{CODE}&#60;/script&#62; &amp;lt;script&gt;",
    f"\\u003cscript>{CODE}\\u003c/script> %3Cscript%3E{CODE} +ADw-script+AD4-{CODE}",
    f"' onmouseover={CODE} x=' \" autofocus onfocus={CODE} x=\" ` onclick={CODE} x=`",
    f"\x1b]8;;javascript:{CODE}\x07x\x1b]8;;\x07 \x1b[31m<script>{CODE}</script>\x1b[0m",
    f"<xmp><script>{CODE}</script></xmp><plaintext><listing><script>{CODE}</script>",
]
KINDS = ["text/html", "text/markdown", "text/latex", "text/plain", "image/svg+xml", "image/png", "image/jpeg"]
KINDS += ["application/javascript", "application/vnd.jupyter.widget-view+json"]


def hostile_notebook():
    """Cells with each attack as text, code, each kind of output, a stream, an error, and metadata."""
    cells = []
    for attack in ATTACKS:
        outputs = []
        for kind in KINDS:
            metadata = {kind: {"alt": attack, "width": attack}}
            outputs.append(new_output("display_data", data={kind: attack}, metadata=metadata))
        table = pd.DataFrame({attack: [attack]}, index=[attack]).to_html(escape=False)
        outputs.append(new_output("display_data", data={"text/html": table}))
        outputs += [new_output("stream", name=name, text=attack) for name in ("stdout", "stderr")]
        outputs.append(new_output("error", ename=attack, evalue=attack, traceback=[attack]))
        quoted = f"# {attack}\n\n| a |\n|-|\n| {attack} |\n\n> ![{attack}]({attack} '{attack}')"
        metadata = {"alt": attack, "tags": [attack.replace(",", ";"), "parameters"]}
        cells += [
            new_markdown_cell(attack),
            new_markdown_cell(quoted),
            new_code_cell(attack, outputs=outputs, metadata=metadata),
            new_raw_cell(attack, metadata={"raw_mimetype": "text/html"}),
        ]
    return new_notebook(cells=cells)


def hostile_site(folder):
    """Write the site; returns its pages by name."""
    nbformat.write(hostile_notebook(), folder / "run.ipynb")
    (folder / "a.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    text = "\n".join(ATTACKS)
    entry = site.Entry(text, text, folder / "run.ipynb", "run.html", "done", detail=text, row=text)
    frame = pd.DataFrame([ATTACKS], columns=ATTACKS)
    table = site.Table("a table", frame, text, limit=99)
    index = site.write(
        site.Site(
            title=text,
            question=text,
            answer=ATTACKS,
            entries=[entry],
            standings=table,
            missing=ATTACKS,
            notes=ATTACKS,
            figures=[(folder / "a.svg", attack) for attack in ATTACKS],
            headline=table,
            claims=table,
            tables=[table],
            facts=dict.fromkeys(ATTACKS, text),
        ),
        folder / "site",
    )
    return {name: index.with_name(f"{name}.html") for name in ("index", "claims", "run")}
