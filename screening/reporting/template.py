"""Fixed parts of a report: its head with styles, the script that sorts tables, and its end."""

from __future__ import annotations

# The file is self-contained: the content security policy keeps the browser from fetching anything.
HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; max-width: 1000px; padding: 1em; }}
h1 {{ margin-bottom: 0; overflow-wrap: anywhere; }} h2 {{ margin-top: 2em; font-size: 1.2em; }}
.date, .note {{ color: #667; font-size: 0.85em; }} .lead {{ font-size: 1.1em; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.85em; }}
th, td {{ text-align: left; padding: 0.3em 0.6em; border-bottom: 1px solid #dde; }}
thead th {{ vertical-align: bottom; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.sortable th {{ cursor: pointer; }}
.facts td {{ overflow-wrap: anywhere; }}
.picture svg {{ width: 110px; height: 110px; display: block; }}
@media print {{ section {{ break-inside: avoid-page; }} }}
</style></head><body>
"""

SORTING = """<script>
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((heading, column) => heading.addEventListener("click", () => {
    const down = heading.dataset.down !== "yes";
    heading.dataset.down = down ? "yes" : "no";
    const key = (row) => {
      const cell = row.cells[column], value = cell.dataset.value;
      return value === undefined ? cell.textContent : (isNaN(value) ? Infinity : Number(value));
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? 1 : -1);
    });
    body.append(...rows);
  }));
}
</script>"""

FOOT = "</body></html>\n"
