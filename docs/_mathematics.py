"""For the site: LaTeX becomes MathML while the pages are built, so that equations need no script and no network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What the arithmatex extension makes of $...$ and $$...$$.
_MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def on_page_content(page_html: str, **_: Any) -> str:
    def mathml(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        return convert(html.unescape(match["latex"]), display=display)

    return _MARKED.sub(mathml, page_html)
