# SPDX-License-Identifier: Apache-2.0
"""plot.py BENCH.json PAGE.html: the benchmark's figures as one page of plots
(by gnuplot, as SVG inside the page) and tables."""
import html
import json
import re
import subprocess
import sys

STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 62em; margin: 2em auto;
       padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .15em .8em; text-align: right; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""
COMMON = """
set terminal svg size 860,420 dynamic font 'sans-serif,13' \\
    background '#ffffff'
set grid lc rgb '#dddddd'
set border 3 lc rgb '#888888'
set tics nomirror
set key outside right top
"""


def gnuplot(commands, curves):
    """SVG of a plot; curves: (title, rows of numbers)."""
    blocks = "".join(
        f"$d{i} << EOD\n" + "\n".join(" ".join(map(str, r)) for r in rows)
        + "\nEOD\n" for i, (_, rows) in enumerate(curves))
    text = COMMON + blocks + commands
    r = subprocess.run(["gnuplot"], input=text, text=True, check=True,
                       capture_output=True)
    return r.stdout[r.stdout.index("<svg"):]


def lengths(cases, pattern):
    """Curves over n: pattern's groups name the curve and n."""
    curves = {}
    for c in cases:
        m = re.fullmatch(pattern, c["name"])
        if m:
            curves.setdefault(m["curve"], []).append((int(m["n"]), c))
    return curves


def forward(cases):
    plots = []
    for dtype in ("f32", "f16", "bf16"):
        curves = lengths(cases, rf"{dtype} (?P<curve>.*) n(?P<n>\d+)")
        data = [(name, [(n, 100 * c["ratio"]["median"],
                         100 * c["ratio"]["min"], 100 * c["ratio"]["max"])
                        for n, c in rows if "ratio" in c])
                for name, rows in curves.items()]
        data = [d for d in data if d[1]]
        if not data:
            continue
        peaks = {c["peak"] for rows in curves.values() for _, c in rows
                 if "peak" in c}
        plot = ", ".join(
            f"$d{i} using 1:2:3:4 with yerrorlines lw 2 pt 7 ps 0.6 "
            f"title '{name}'" for i, (name, _) in enumerate(data))
        plots.append(gnuplot(
            f"set title '{dtype} forward, share of the {'/'.join(peaks)} rate'"
            "\nset logscale x 2\nset xlabel 'sequence length'\n"
            "set ylabel '%'\nset yrange [0:100]\n"
            f"plot {plot}\n", data))
    return plots


def small(cases):
    curves = lengths(cases, r"n(?P<n>\d+): (?P<curve>.*)")
    data = [(name, [(n, c["value"]["median"]) for n, c in rows
                    if "value" in c]) for name, rows in curves.items()]
    data = [d for d in data if d[1]]
    if not data:
        return []
    plot = ", ".join(f"$d{i} using 1:2 with linespoints lw 2 pt 7 ps 0.6 "
                     f"title '{name}'" for i, (name, _) in enumerate(data))
    return [gnuplot("set title 'short sequences, 8 heads, d 64'\n"
                    "set logscale x 2\nset logscale y\n"
                    "set xlabel 'sequence length'\n"
                    f"set ylabel 'microseconds'\nplot {plot}\n", data)]


def bars(cases, title):
    """Shares of a peak as bars, least to most as a whisker."""
    rows = [(i, 100 * c["ratio"]["median"], 100 * c["ratio"]["min"],
             100 * c["ratio"]["max"])
            for i, c in enumerate(c for c in cases if "ratio" in c)]
    names = [c["name"] for c in cases if "ratio" in c]
    if not rows:
        return []
    tics = ", ".join(f"'{n}' {i}" for i, n in enumerate(names))
    return [gnuplot(
        f"set title '{title}'\nset ylabel '%'\nset yrange [0:*]\n"
        "set boxwidth 0.7\nset style fill solid 0.6\nunset key\n"
        f"set xtics rotate by -35 ({tics})\n"
        "plot $d0 using 1:2 with boxes lc rgb '#4477aa', "
        "$d0 using 1:2:3:4 with yerrorbars lc rgb '#222222' ps 0\n",
        [("", rows)])]


PLOTS = {
    "forward": forward, "small": small,
    "strides": lambda c: bars(c, "share of the FMA rate"),
    "decode": lambda c: bars(c, "share of the bandwidth of a plain read"),
    "peers": lambda c: bars(c, "share of the FMA rate"),
}


def table(cases):
    out = ["<table><tr><th></th><th>min</th><th>median</th><th>max</th>"
           "<th>unit</th><th colspan=3>ratio: min, median, max</th></tr>"]
    for c in cases:
        cells = [html.escape(c["name"])]
        if "commit" in c:
            cells[0] += f" <small>({html.escape(c['commit'])})</small>"
        if c["failed"]:
            cells += ["failed"]
        else:
            cells += [f"{c['value'][k]:.4g}" for k in ("min", "median", "max")]
            cells += [c["unit"]]
        if "ratio" in c:
            scale, unit = (100, " %") if "peak" in c else (1, " x")
            cells += [f"{scale * c['ratio'][k]:.3g}{unit}"
                      for k in ("min", "median", "max")]
        out.append("<tr><td>" + "</td><td>".join(cells) + "</td></tr>")
    return "\n".join(out + ["</table>"])


def main(source, target):
    with open(source, encoding="utf-8") as f:
        b = json.load(f)
    head = (f"{html.escape(b['cpu'])}, {b['threads']} threads, "
            f"{b['clock_ghz']:.2f} GHz, {b['vectors']}: "
            f"{b['fma_gflops']:.0f} GFLOP/s of f32 FMA. "
            f"{b['date']}, commit {html.escape(b['commit'] or 'unknown')}. "
            f"Least, median and most of {b['rounds']} interleaved rounds; "
            "every share is of a rate measured next to the figure.")
    page = ["<!doctype html><html lang=en><meta charset=utf-8>",
            "<title>attnc: measured</title>", f"<style>{STYLE}</style>",
            "<h1>attnc: measured</h1>", f"<p>{head}</p>"]
    for group, title in b["titles"].items():
        cases = [c for c in b["cases"] if c["group"] == group]
        if cases:
            page.append(f"<h2>{html.escape(title)}</h2>")
            page += PLOTS.get(group, lambda c: [])(cases)
            page.append(table(cases))
    with open(target, "w", encoding="utf-8") as f:
        f.write("\n".join(page) + "\n")


main(*sys.argv[1:])
