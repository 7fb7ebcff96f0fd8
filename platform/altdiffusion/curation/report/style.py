"""The page's one style sheet: one accent colour, light and dark, from a phone's width up."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper: #f7f8f8; --card: #ffffff; --ink: #1a2126; --soft: #59646e; --line: #e1e5e8; --track: #e9edef;
  --accent: #0b6e69; --mid: #6fb1ad; --pale: #cfe4e2; --lost: #b9c1c8; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #12171a; --card: #1a2125; --ink: #e6ebee; --soft: #9caab4; --line: #2c363c; --track: #273137;
  --accent: #52bdb4; --mid: #35817c; --pale: #24504e; --lost: #59656e; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.page { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2, h3, h4, p, ul, ol, dl, dd, figure, table { margin: 0; padding: 0; }
ul, ol { list-style: none; }
h1 { font-size: 32px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 680; }
h2 { font-size: 21px; line-height: 1.25; letter-spacing: -0.01em; font-weight: 650; }
h3, h4 { font-size: 15px; font-weight: 650; }
section { margin-top: 56px; }
section > h2 + p { margin-top: 4px; max-width: 84ch; }
.soft, section > h2 + p, .about { color: var(--soft); }
.over { color: var(--accent); font-weight: 650; font-size: 13px; letter-spacing: 0.02em; margin-bottom: 6px; }
.lede { font-size: 18px; line-height: 1.45; margin-top: 12px; max-width: 62ch; }
.lede strong { font-weight: 680; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; }
code, .url { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; font-size: 0.88em; }
a { color: var(--accent); text-decoration: none; } a:hover, a:focus-visible { text-decoration: underline; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 20px; margin-top: 22px; font-size: 14px; }
.stats { display: grid; grid-template-columns: repeat(4, 1fr); margin-top: 26px; background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
.stats div { padding: 16px 20px; border-left: 1px solid var(--line); } .stats div:first-child { border-left: 0; }
.stats dt { color: var(--soft); font-size: 13px; } .stats dd { font-size: 25px; font-weight: 650; line-height: 1.25;
  letter-spacing: -0.01em; }
.stats dd small { display: block; font-size: 13px; font-weight: 400; color: var(--soft); letter-spacing: 0; }
table { width: 100%; border-collapse: collapse; }
caption { text-align: left; }
th, td { text-align: left; vertical-align: top; padding: 7px 0 7px 16px; border-top: 1px solid var(--line);
  font-weight: 400; }
th:first-child, td:first-child { padding-left: 0; }
thead th { border-top: 0; color: var(--soft); font-size: 13px; padding-top: 0; vertical-align: bottom; }
tfoot th, tfoot td { font-weight: 650; }
.n { text-align: right; white-space: nowrap; }
.name { font-weight: 600; } .native, .why { color: var(--soft); } .why, .note { font-size: 13px; line-height: 1.4; }
.note { color: var(--soft); margin-top: 12px; }
.bar { display: block; width: 100%; height: 8px; border-radius: 4px; background: var(--track); overflow: hidden; }
.thin .bar { height: 5px; margin-top: 4px; background: none; border-radius: 2.5px; }
.fill { fill: var(--accent); } .mid { fill: var(--mid); } .pale { fill: var(--pale); } .lost { fill: var(--lost); }
.way { margin-top: 18px; } .way li { display: grid; grid-template-columns: 110px 1fr minmax(64px, auto) 62px; gap: 16px;
  align-items: center; padding: 6px 0; } .way .bar { height: 18px; }
.sum { margin-top: 12px; padding-top: 12px; border-top: 1px solid var(--line); }
.sum strong { font-weight: 650; } .wrong { font-weight: 650; text-decoration: underline; }
.steps { columns: 2; column-gap: 20px; margin-top: 20px; }
.steps .card { break-inside: avoid; margin-bottom: 20px; }
.step-head { display: flex; justify-content: space-between; gap: 16px; align-items: baseline; flex-wrap: wrap; }
.step-head h3 { text-transform: capitalize; font-size: 16px; }
.steps table { margin-top: 12px; } .steps .about { font-size: 13px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); margin: 18px 0 10px; }
.key svg { width: 12px; height: 12px; border-radius: 3px; display: inline-block; vertical-align: -1px;
  margin-right: 6px; }
.languages { display: grid; column-gap: 20px;
  grid-template-columns: max-content minmax(60px, 1fr) repeat(6, max-content); }
.languages > div { display: grid; grid-template-columns: subgrid; grid-column: 1 / -1; align-items: center;
  padding: 5px 0; border-top: 1px solid var(--line); }
.languages > .head { border-top: 0; color: var(--soft); font-size: 13px; } .languages > .all { font-weight: 650; }
.languages .bar { height: 12px; } .languages .native { font-weight: 400; } .tag { display: none; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; margin-top: 20px; align-items: start; }
.pair h3, .one h3 { margin-bottom: 10px; } .pair > .card { min-width: 0; } .one { margin-top: 20px; }
.panel { margin-top: 26px; } .panel > p { color: var(--soft); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px;
  margin-top: 12px; }
.charts .card { padding: 14px 16px 12px; } .charts figcaption { display: flex; justify-content: space-between;
  align-items: baseline; gap: 12px; } .charts figcaption span { color: var(--soft); font-size: 13px; }
.histogram { display: block; width: 100%; height: auto; margin-top: 8px; }
.histogram text { font: 11px system-ui, sans-serif; fill: var(--soft); font-variant-numeric: tabular-nums; }
.histogram .mark { fill: var(--ink); font-weight: 600; } .base { stroke: var(--lost); fill: none; }
.median { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 3 3; fill: none; }
.histogram .fill { fill: var(--mid); }
.charts p { font-size: 13px; color: var(--soft); line-height: 1.4; }
.gallery { margin-top: 28px; } .gallery h3 { margin-bottom: 10px; } .gallery h3 .soft { font-weight: 400; }
.gallery ul { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 14px; }
.frame { display: flex; align-items: center; justify-content: center; aspect-ratio: 1; border-radius: 8px;
  overflow: hidden; background: var(--card); border: 1px solid var(--line); }
.frame img { display: block; width: 82%; height: 82%; object-fit: contain; }
.frame img.large { width: 100%; height: 100%; }
figcaption .says { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden;
  font-size: 13px; line-height: 1.4; margin-top: 7px; }
figcaption .facts { color: var(--soft); font-size: 12px; line-height: 1.45; margin-top: 3px; }
.facts { display: flex; flex-wrap: wrap; gap: 0 10px; } .facts span { white-space: nowrap; }
.why-not .pairs { margin-top: 10px; } .why-not .pairs li { padding: 12px 0; display: grid;
  grid-template-columns: 1fr 1fr; gap: 12px; }
.why-not { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 16px;
  margin-top: 14px; align-items: start; }
.why-not .card { padding: 14px 16px; } .why-not li { border-top: 1px solid var(--line); padding: 7px 0;
  font-size: 13px; line-height: 1.4; } .why-not ol { margin-top: 8px; } .why-not li:last-child { padding-bottom: 0; }
.why-not .url { display: block; font-size: 12px; } .why-not .detail { color: var(--soft); }
.step-name { margin-top: 30px; text-transform: capitalize; font-size: 16px; }
.versions { margin-top: 16px; } .versions td:first-child { white-space: nowrap; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
pre { font-size: 12px; line-height: 1.5; white-space: pre-wrap; margin: 10px 0 0; color: var(--soft); }
footer { margin-top: 56px; padding-top: 18px; border-top: 1px solid var(--line); font-size: 13px;
  color: var(--soft); } footer p + p { margin-top: 6px; }
@media (max-width: 900px) {
  .stats { grid-template-columns: 1fr 1fr; } .stats div:nth-child(odd) { border-left: 0; }
  .stats div:nth-child(n + 3) { border-top: 1px solid var(--line); }
  .steps { columns: 1; }
  .pair { grid-template-columns: 1fr; } .gallery ul { grid-template-columns: repeat(4, 1fr); }
  .languages > .head { display: none; } .languages > .head + div { border-top: 0; padding-top: 0; }
  .languages { display: block; }
  .languages > div { grid-template-columns: minmax(0, 103fr) minmax(0, 116fr) minmax(0, 90fr); gap: 0 8px;
    padding: 10px 0; }
  .languages.large > div { grid-template-columns: minmax(0, 6fr) minmax(0, 5fr); }
  .languages .name { grid-column: 1 / 2; } .languages .draw { grid-column: 2 / -1; }
  .languages .name:has(+ .draw:empty) { grid-column: 1 / -1; } .languages .draw:empty { display: none; }
  .languages .n { text-align: left; font-size: 13px; } .languages .none { display: none; }
  .tag { display: inline; color: var(--soft); font-weight: 400; }
}
@media (max-width: 640px) {
  .page { padding: 26px 16px 48px; } h1 { font-size: 27px; } .lede { font-size: 16px; } section { margin-top: 44px; }
  .card { padding: 14px; } .stats div { padding: 12px 14px; }
  .stats dd { font-size: 21px; }
  .way li { grid-template-columns: 1fr auto 56px; gap: 4px 12px; padding: 8px 0; }
  .way .draw { grid-column: 1 / -1; grid-row: 2; }
  .gallery ul { grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 14px 10px; }
  th, td { padding-left: 12px; }
}
@media print { body { background: none; } section { break-inside: auto; } nav { display: none; } }
"""
