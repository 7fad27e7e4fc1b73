"""A page with the answers of several models side by side, one file without scripts.

What a model writes is not to be trusted: it may be HTML. All of it is escaped, and the page itself forbids the browser
everything but its own style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 90em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100%; table-layout: fixed; margin-bottom: 2em }
th, td { border: 1px solid #bbb; padding: .5em; text-align: left; vertical-align: top; overflow-wrap: anywhere }
td { white-space: pre-wrap } th { background: #eee } .figures td { text-align: right } .figures { table-layout: auto }
.note { color: #777; font-size: .85em; display: block; margin-top: .5em }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def answers_page(
    title: str,
    figures: Sequence[Sequence[str]],
    questions: Sequence[str],
    references: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    notes: Mapping[str, Sequence[str]],
) -> str:
    """The page as HTML.

    Args:
        figures: the rows of a table, the first one its header.
        answers: model -> its answer to each question.
        notes: model -> a line below each answer.
    """
    columns = ["question", "reference", *answers]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    rows = []
    for i, (question, reference) in enumerate(zip(questions, references, strict=True)):
        cells = [escape(question), escape(reference)]
        cells += [f'{escape(answers[m][i])}<span class="note">{escape(notes[m][i])}</span>' for m in answers]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    first, *rest = figures
    table = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in first) + "</tr>"
    for name, *cells in rest:
        table += f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<table class="figures">
{table}
</table>
<table>
<tr>{head}</tr>
{chr(10).join(rows)}
</table>
</body>
</html>
"""
