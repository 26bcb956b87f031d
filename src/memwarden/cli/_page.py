"""The frame of an HTML page: one file that needs nothing else, readable in light, in dark and on paper."""

from __future__ import annotations

from html import escape

STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1c2430;--soft:#5b6675;--rule:#e3e7ec;--card:#f6f8fa;
--line:#2260c9;--limit:#c62828;--warn:#b26a00;--good:#1b7f4b;--cone:#c62828}
@media(prefers-color-scheme:dark){:root{--ground:#12161c;--ink:#e8ecf1;--soft:#9aa5b3;--rule:#2a323d;
--card:#1a2029;--line:#7aa7ff;--limit:#ff7b72;--warn:#f0b44c;--good:#5fd08f;--cone:#ff7b72}}
@media print{:root{color-scheme:light;--ground:#fff;--ink:#000;--soft:#444;--rule:#ccc;--card:#f4f4f4;
--line:#2260c9;--limit:#b00020;--warn:#8a5200;--good:#126b3c;--cone:#b00020}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 24px 48px}
h1{font-size:1.6rem;margin:0;overflow-wrap:anywhere}h2{font-size:1.05rem;margin:36px 0 8px}
.of{color:var(--soft);margin:2px 0 20px}
.say{border-left:5px solid var(--good);background:var(--card);padding:14px 18px;border-radius:0 8px 8px 0;
font-size:1.15rem}.say.warn{border-color:var(--warn)}.say.bad{border-color:var(--limit)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:18px 0}
.tile{background:var(--card);border-radius:8px;padding:12px 16px}
.tile b{display:block;font-size:1.4rem;line-height:1.25}.tile span{color:var(--soft);font-size:.85rem}
figure{margin:0}figcaption{color:var(--soft);font-size:.88rem;margin-top:4px}
svg{width:100%;height:auto;display:block}
svg text{font-size:12px;fill:var(--soft);paint-order:stroke;stroke:var(--ground);stroke-width:4px;
stroke-linejoin:round}.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}
.curve{fill:none;stroke:var(--line);stroke-width:1.8;stroke-linejoin:round}circle.curve{fill:var(--line)}
.counted{fill:none;stroke:var(--soft);stroke-width:1}.band{fill:var(--line);stroke:var(--line);stroke-width:.7;opacity:.35}.bar{fill:var(--line);opacity:.75}
line.limit{stroke:var(--limit);stroke-width:2}text.limit{fill:var(--limit);font-weight:600}
line.level{stroke:var(--warn);stroke-dasharray:2 4}text.level{fill:var(--warn)}
line.fit{stroke:var(--good);stroke-width:1.5;stroke-dasharray:7 4}text.fit{fill:var(--good)}
.growth{fill:none;stroke:var(--warn);stroke-width:2;stroke-dasharray:9 5}
text.growth{fill:var(--warn);stroke:var(--ground);stroke-width:4px;stroke-dasharray:none;font-weight:600}
.cone{fill:var(--cone);opacity:.16}
.ahead{fill:none;stroke:var(--cone);stroke-width:1.6;stroke-dasharray:3 4}
text.ahead{fill:var(--cone);stroke:var(--ground);stroke-width:4px;stroke-dasharray:none}
line.now{stroke:var(--soft);stroke-dasharray:1 3}
circle.peak{fill:var(--ground);stroke:var(--ink);stroke-width:2}text.peak{fill:var(--ink);font-weight:600}
.spike{fill:var(--warn)}table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:7px 12px 7px 0;border-bottom:1px solid var(--rule)}
th{font-weight:500;color:var(--soft);white-space:nowrap;width:11rem}ul{padding-left:1.2rem;margin:6px 0}
table.list{font-size:.9rem;font-variant-numeric:tabular-nums}
table.list th{width:auto;white-space:normal;vertical-align:bottom}
table.list tbody th{color:var(--ink);vertical-align:top}table.list td.figure{white-space:nowrap}
caption{text-align:left;color:var(--soft);font-size:.88rem;padding:4px 0}.wide{overflow-x:auto}
details{margin:4px 0 12px;color:var(--soft);font-size:.88rem}
h3{font-size:.95rem;margin:22px 0 4px;overflow-wrap:anywhere}
h2,h3,caption{break-after:avoid}
section+section{border-top:1px solid var(--rule);margin-top:48px;padding-top:32px}
footer{color:var(--soft);font-size:.85rem;margin-top:40px}
@media print{:root{font-size:12px}body{font-size:1rem}main{max-width:none;padding:0}section{break-after:page}
figure,table,.tiles,tr{break-inside:avoid}table.list{break-inside:auto;font-size:9px}
table.list th,table.list td{padding:4px 6px 4px 0}.wide{overflow-x:visible}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def frame(title: str, body: str, footer: str) -> str:
    """The whole document around this body, which is HTML already; title and footer are plain text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"{body}\n<footer>{escape(footer)}</footer></main></body></html>\n"
    )
