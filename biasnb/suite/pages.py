"""Templates of the report: cells of a notebook (nbconvert), frame, pages and their style; no script, nothing external."""

CELLS = """
{%- extends 'display_priority.j2' -%}
{%- block markdowncell %}{{ cell.source | markdown2html }}{% endblock -%}
{%- block input %}<details><summary>code</summary>{{ cell.source | highlight_code(metadata=cell.metadata) }}</details>
{% endblock -%}
{%- block output_group %}<div class="output">{{ super() }}</div>{% endblock -%}
{%- block execute_result %}{% block data_priority scoped %}{{ super() }}{% endblock %}{% endblock -%}
{%- block stream_stdout %}<pre>{{ output.text | ansi2html }}</pre>{% endblock -%}
{%- block stream_stderr %}<pre>{{ output.text | ansi2html }}</pre>{% endblock -%}
{%- block error %}<pre>{{ super() }}</pre>{% endblock -%}
{%- block traceback_line %}{{ line | ansi2html }}{% endblock -%}
{%- block data_png %}
{%- set width = output.metadata.get('image/png', {}).get('width') -%}
<img alt=""{% if width %} width="{{ width }}"{% endif %} src="data:image/png;base64,
{{- output.data['image/png'].split() | join }}">
{%- endblock -%}
{%- block data_jpg %}<img alt="" src="data:image/jpeg;base64,{{ output.data['image/jpeg'].split() | join }}">{% endblock -%}
{%- block data_svg %}<img alt="" src="data:image/svg+xml;base64,{{ output.data["image/svg+xml"] | text_base64 }}">
{%- endblock -%}
{%- block data_html %}{{ output.data['text/html'] }}{% endblock -%}
{%- block data_markdown %}{{ output.data['text/markdown'] | markdown2html }}{% endblock -%}
{%- block data_text %}<pre>{{ output.data['text/plain'] | ansi2html }}</pre>{% endblock -%}
"""
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #586372; --line: #dce1e8; --ground: #fff; --raised: #f5f7fa;
  --link: #0b57a4; --yes: #00614a; --yes-bg: #d9f3e9; --no: #963200; --no-bg: #fde7d9; --open: #465060; --open-bg: #e9ecf1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ef; --soft: #9aa7b8; --line: #333d4b; --ground: #12171f;
  --raised: #1b222d; --link: #7db8f7; --yes: #7fe0bf; --yes-bg: #0d3a2e; --no: #ffb48a; --no-bg: #47210d; --open: #c3cbd6;
  --open-bg: #2c3542; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1.25rem 3rem; max-width: 66rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.6 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; }
a { color: var(--link); text-underline-offset: .25em; }
h1, h2, h3 { line-height: 1.25; margin: 2.4rem 0 .6rem; } h1 { font-size: 1.85rem; margin-top: 1.6rem; }
h2 { font-size: 1.35rem; } h3 { font-size: 1.08rem; } p, ul, ol { max-width: 46rem; margin: .6rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; padding: .8rem 0; font-size: .9rem; }
nav + main { border-top: 1px solid var(--line); } footer { margin-top: 3rem; border-top: 1px solid var(--line); }
[rel=next] { margin-left: auto; }
.wide { overflow-x: auto; margin: 1rem 0; } img { max-width: 100%; background: #fff; vertical-align: top; }
.picture { padding: .6rem; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .86rem; line-height: 1.4; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--soft); }
td:first-child { min-width: 8.5rem; } td.claim { min-width: 12rem; } td.effect { min-width: 18rem; }
.number { text-align: right; } td.number { white-space: nowrap; } tr:hover td:not([rowspan]) { background: var(--raised); }
code, pre { font: .86em/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre { overflow-x: auto; padding: .7rem .9rem; background: var(--raised); border-radius: 6px; }
details { margin: .5rem 0; } summary { width: max-content; cursor: pointer; color: var(--soft); font-size: .86rem; }
.c1 { color: var(--soft); } .k, .kn, .kc { color: var(--link); } .s1, .s2 { color: var(--yes); } .mi, .mf { color: var(--no); }
.answer { padding: .8rem 1rem; border-left: 4px solid var(--link); background: var(--raised); border-radius: 0 6px 6px 0; }
.verdict { display: inline-block; padding: 0 .6rem; border-radius: 1rem; font-size: .85rem; font-weight: 600;
  white-space: nowrap; color: var(--open); background: var(--open-bg); }
.not-run { background: none; box-shadow: inset 0 0 0 1px var(--soft); }
.supported { color: var(--yes); background: var(--yes-bg); } .contradicted { color: var(--no); background: var(--no-bg); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; font-size: .9rem; } dd { margin: 0; }
dt, .soft { color: var(--soft); font-size: .86rem; }
article { display: grid; grid-template-columns: 16rem 1fr; gap: 0 1.6rem; padding: 1.3rem 0; }
article { border-top: 1px solid var(--line); } article h3 { margin: 0; } article p { margin: .4rem 0; }
article img { max-height: 12rem; padding: .3rem; border: 1px solid var(--line); border-radius: 6px; }
@media (max-width: 44rem) { article { grid-template-columns: minmax(0, 1fr); } article img { margin-bottom: .7rem; }
  .picture img { max-width: max(100%, 36rem); } h1 { font-size: 1.5rem; } }
@media print { nav, details { display: none; } }
"""
PARTS = """{% macro mark(verdict, text) %}<span class="verdict {{ verdict | replace(" ", "-") }}">
{{- symbols.get(verdict, "?") }} {{ text }}</span>{% endmacro %}
{% macro chips(findings) %}<p>{% for f in findings %}
<a href="index.html#{{ f.claim.id | urlencode }}" title="{{ f.claim.text }}">
{{- mark(f.verdict, [f.claim.id, metrics[f.metric].name, f.verdict] | join(" ")) }}</a>
{% endfor %}</p>{% endmacro %}"""
FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{% block title %}{% endblock %} · biasnb {{ profile }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{% block body %}{% endblock %}
</body>
</html>
"""
PAGE = """{% extends "frame" %}{% from "parts" import chips with context %}{% block title %}{{ page.title }}{% endblock %}
{% block body %}{% set beside %}<a href="index.html">All notebooks, profile {{ profile }}</a>
{% if before %}<a rel="prev" href="{{ before | urlencode }}.html">← {{ before }}</a>{% endif %}
{% if after %}<a rel="next" href="{{ after | urlencode }}.html">{{ after }} →</a>{% endif %}{% endset %}
<nav aria-label="Notebooks">{{ beside }}</nav>
<main>
{% if page.contents | length > 15 %}<details><summary>on this page</summary>
<ul>{% for id, text in page.contents %}<li><a href="#{{ id }}">{{ text }}</a></li>{% endfor %}</ul></details>{% endif %}
{{ page.body }}
</main>
<footer>
{% if found %}<p>Claims that rest on this notebook:</p>{{ chips(found) }}{% endif %}
<p class="soft"><a href="{{ page.source | urlencode }}">{{ name }}.ipynb</a> as it was executed {{ page.given }}</p>
<nav aria-label="Next notebooks">{{ beside }}</nav>
</footer>
{% endblock %}"""
INDEX = """{% extends "frame" %}{% from "parts" import chips, mark with context %}{% block title %}Report{% endblock %}
{% block body %}
<main>
<h1>What inductive biases are worth: profile {{ profile }}</h1>
<p>Small networks are trained without labels on images while inductive biases, such as convolution's locality and weight
sharing, are taken away. This tests what <a href="https://arxiv.org/abs/2105.14077"><cite>On the Bias Against Inductive
Biases</cite></a> (Cazenavette and Lucey, 2021) states. Each notebook asks one question and answers it in its own words,
written about the committed records{% if claims %}; the verdicts on the claims are computed from the records of this
report{% endif %}.</p>
<dl>{% for label, text in facts %}<dt>{{ label }}</dt><dd>{{ text }}</dd>
{% endfor %}</dl>
{% if claims %}<h2>Claims</h2>
<p>{% for verdict, n in counts %}{{ mark(verdict, [n, verdict] | join(" ")) }} {% endfor %}</p>
<div class="wide" role="region" tabindex="0" aria-label="Claims"><table>
<thead><tr><th>claim</th><th>verdict</th><th>metric</th><th>effect and why</th><th class="number">n</th>
<th>notebook</th></tr></thead><tbody>
{% for claim in claims %}{% for f in claim %}<tr>
{% if loop.first %}<td class="claim" rowspan="{{ claim | length }}" id="{{ f.claim.id }}"><b>{{ f.claim.id }}</b>
{{ f.claim.text }}</td>{% endif %}<td>{{ mark(f.verdict, f.verdict) }}</td><td>{{ metrics[f.metric].name }}</td>
<td class="effect">{{ f.effect }}<div class="soft">{{ f.why }}</div></td><td class="number">{{ f.n }}</td>
<td>{% for name, href in place(f) %}<a href="{{ href }}">{{ name }}</a> {% endfor %}</td></tr>
{% endfor %}{% endfor %}</tbody></table></div>{% endif %}
<h2>Notebooks</h2>
{% for name, question, page, found in cards %}<article id="{{ name }}">
<div>{% if page and page.thumbnail.src %}<a href="{{ name | urlencode }}.html">
<img src="{{ page.thumbnail.src }}" alt="{{ page.thumbnail.alt }}"></a>{% endif %}</div>
<div><h3>{% if page %}<a href="{{ name | urlencode }}.html">{{ question }}</a>{% else %}{{ question }}{% endif %}</h3>
<p>{% if page %}{{ page.answer }}{% else %}{{ mark("not run", "not run") }}
<code>biasnb notebook {{ name }} --profile {{ profile }}</code>{% endif %}</p>
{{ chips(found) }}
<p class="soft">{{ name }}{% if page %} · <a href="{{ page.source | urlencode }}">.ipynb</a> {{ page.given }}{% endif %}</p>
</div>
</article>
{% endfor %}
</main>
{% endblock %}"""
