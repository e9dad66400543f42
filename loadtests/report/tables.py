"""Tables of the report. Every cell is escaped here, so that no name can become markup."""

from collections.abc import Iterable, Sequence
from html import escape


class Wrong(str):
    """A cell that is shown as a violation."""

    __slots__ = ()


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "table") -> str:
    """A table; a head that begins with `=` makes its column one of figures, aligned to the right."""
    figures = [head.startswith("=") for head in heads]
    titles = "".join(
        f"<th{_kind(figure=figure)}>{escape(head.removeprefix('='))}</th>"
        for head, figure in zip(heads, figures, strict=True)
    )
    body = "".join(
        f"<tr>{''.join(_cell(text, figure=figure) for text, figure in zip(row, figures, strict=True))}</tr>"
        for row in rows
    )
    return (
        f'<div class="{kind}"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
        if body
        else ""
    )


def section(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table under its title."""
    return f"<h2>{escape(title)}</h2>{table(heads, rows)}"


def pairs(listed: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for."""
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in listed)
    return f"<dl>{inner}</dl>"


def _cell(text: str, *, figure: bool) -> str:
    return f"<td{_kind(figure=figure, wrong=isinstance(text, Wrong))}>{escape(text)}</td>"


def _kind(*, figure: bool, wrong: bool = False) -> str:
    kinds = ["n"] * figure + ["broken"] * wrong
    return f' class="{" ".join(kinds)}"' if kinds else ""
