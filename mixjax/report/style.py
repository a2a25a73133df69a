"""The style sheet: light and dark colours, and a grid of boxes that fits any width."""

STYLE = """
:root{color-scheme:light dark;--back:#fff;--box:#f4f6f8;--text:#1b1f24;--muted:#57606a;
--grid:#d5dae0;--line:#0a58ca}
@media(prefers-color-scheme:dark){:root{--back:#0f1318;--box:#1a2027;--text:#e6edf3;
--muted:#a3adb8;--grid:#313a44;--line:#79b8ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:16px;background:var(--back);
color:var(--text);font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{margin:8px 0;font-size:1.6rem}h2{margin:32px 0 12px;font-size:1.2rem}
nav a{display:inline-block;margin-right:16px;color:var(--line)}
.facts,.grid{display:grid;gap:12px;margin:12px 0;
grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.facts{grid-template-columns:repeat(auto-fill,minmax(min(100%,160px),1fr))}
.facts div,figure,details{margin:0;padding:10px 12px;border-radius:8px;
background:var(--box)}
dt,figcaption{color:var(--muted);font-size:.85rem}dd{margin:0;font-weight:600}
figcaption{display:flex;justify-content:space-between;gap:8px;padding-bottom:6px}
figcaption b{color:var(--text)}
.wide{display:grid;gap:12px;
grid-template-columns:repeat(auto-fill,minmax(min(100%,560px),1fr))}
svg,img{display:block;max-width:100%;height:auto}svg{width:100%}
svg text{fill:var(--muted);font:12px system-ui,sans-serif}
.g{stroke:var(--grid);stroke-width:1}
.c{fill:none;stroke:var(--line);stroke-width:2;stroke-linejoin:round}.d{fill:var(--line)}
.scroll,pre{overflow-x:auto;max-width:100%;overflow-wrap:normal}
table{border-collapse:collapse;font-size:.9rem}
th,td{padding:4px 20px 4px 0;text-align:left;border-bottom:1px solid var(--grid);
white-space:nowrap}
.n,th.n{font-variant-numeric:tabular-nums;text-align:right}
pre{padding:12px;margin:8px 0;border-radius:8px;background:var(--box);font-size:.8rem}
details{margin:8px 0}summary{cursor:pointer;font-weight:600}
"""
