"""A rating sheet as one HTML page that needs no server: the ratings are kept in the browser and saved as CSV."""

import hashlib
import json
from collections.abc import Sequence
from html import escape

from alignkit.evaluation.document import visible

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
article { border: 1px solid #bbb; border-radius: .4rem; padding: .8rem 1rem; margin: 1.2rem 0; }
h2 { font-size: 1rem; margin: 0 0 .4rem; } h3 { font-size: .85rem; margin: .8rem 0 .2rem; color: #555; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
fieldset { border: 0; padding: 0; margin: .7rem 0 0; } legend { font-weight: 600; padding: 0; }
label { margin-right: 1.1rem; white-space: nowrap; } textarea { width: 100%; box-sizing: border-box; font: inherit; }
footer { position: sticky; bottom: 0; background: #fff; border-top: 1px solid #bbb; padding: .7rem 0; }
button { font: inherit; padding: .4rem 1rem; }
"""
SCRIPT = """
"use strict";
const form = document.forms[0], place = "alignkit:" + SHEET.id;
const fields = () => [...new FormData(form)].filter(([, value]) => value !== "");
const count = () => {
  const rated = fields().filter(([name]) => !name.endsWith("/notes")).length;
  document.getElementById("count").textContent = rated + " of " + SHEET.rows.length * SHEET.scales.length + " rated";
};
for (const [name, value] of JSON.parse(localStorage.getItem(place) || "[]")) {
  const field = form.elements[name];
  if (field) field.value = value;
}
form.addEventListener("input", () => { localStorage.setItem(place, JSON.stringify(fields())); count(); });
form.addEventListener("submit", event => {
  event.preventDefault();
  const given = Object.fromEntries(fields()), columns = [...SHEET.scales, "notes"];
  const quoted = text => '"' + text.replaceAll('"', '""') + '"';
  const lines = SHEET.rows.map(row => [row, ...columns.map(column => quoted(given[row + "/" + column] || ""))]);
  const csv = [["row", ...columns], ...lines].map(line => line.join(",") + "\\r\\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\\ufeff" + csv], { type: "text/csv" }));
  link.download = SHEET.file;
  link.click();
});
count();
"""


def sheet_html(rows: Sequence[tuple[str, str, str]], scales: Sequence[tuple[str, int, int]], rater: str) -> str:
    """The page: `rows` are (row, prompt, answer), `scales` (name, lowest, highest)."""
    sheet = {
        "id": hashlib.sha256(
            json.dumps([rater, rows, scales]).encode()
        ).hexdigest(),  # ratings of other sheets are apart
        "file": f"sheet_{rater}.csv",
        "rows": [row for row, _, _ in rows],
        "scales": [name for name, _, _ in scales],
    }
    # No text may end the script, whatever the names are.
    data = json.dumps(sheet).replace("<", "\\u003c")
    articles = "\n".join(_article(number, row, scales) for number, row in enumerate(rows, 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Ratings by {escape(rater)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Ratings by {escape(rater)}</h1>\n<p>Rate each answer by itself. What you give is kept in this browser; "
        "save it as a file when you are done.</p>\n"
        f'<form>\n{articles}\n<footer><button>Save as CSV</button> <span id="count"></span></footer>\n</form>\n'
        f"<script>const SHEET = {data};{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _article(number: int, row: tuple[str, str, str], scales: Sequence[tuple[str, int, int]]) -> str:
    name, prompt, answer = row
    fields = "\n".join(_fieldset(name, *scale) for scale in scales)
    shown = [escape(visible(text)) for text in (prompt, answer)]
    return (
        f'<article>\n<h2>{number}</h2>\n<h3>Prompt</h3>\n<div class="text">{shown[0]}</div>\n<h3>Answer</h3>\n'
        f'<div class="text">{shown[1]}</div>\n{fields}\n<fieldset><legend>notes</legend>'
        f'<textarea name="{name}/notes" rows="1"></textarea></fieldset>\n</article>'
    )


def _fieldset(row: str, scale: str, lowest: int, highest: int) -> str:
    choices = "".join(
        f'<label><input type="radio" name="{row}/{escape(scale)}" value="{value}"> {value}</label>'
        for value in range(lowest, highest + 1)
    )
    return f"<fieldset><legend>{escape(scale)}</legend>{choices}</fieldset>"
