"""Measure how easily the project's English reads: `make readability` prints one row a text.

Flesch reading ease: 206.8 - 1.015 words a sentence - 84.6 syllables a word. Above 60 is plain
English, below 30 is a scientific paper. Code, tables, headings and numbers are left out.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import textstat  # `make readability` installs it

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "optim4rl"


def prose_of_markdown(text: str) -> str:
    """Return the sentences of a page, without code, tables, headings and pictures."""
    text = re.sub(r"^(\s*)```.*?^\s*```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<[^>]+>", "", text)
    lines = [line.strip() for line in text.splitlines()]
    kept = ["" if re.match(r"[|#!]", line) else line for line in lines]
    kept = [re.sub(r"^([-*]|\d+\.) ", "\n\n", line) for line in kept]
    return "\n".join(kept)


def plain(text: str) -> str:
    """Replace links by their text, and code and numbers by one short word each."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"``?[^`]+``?", "code", text)
    text = re.sub(r"https?://\S+", "code", text)
    text = re.sub(r"[-+]?\d[\d.,e%-]*(?<=[\de%])", "ten", text)
    text = text.replace("**", "").replace("e.g.", "such as")
    paragraphs = [" ".join(x.split()) for x in re.split(r"\n\s*\n", text)]
    return "\n".join(x if x[-1] in ".!?:" else f"{x}." for x in paragraphs if x)


def docstrings(folder: Path) -> Iterator[str]:
    """Yield the docstrings of modules, public classes, functions and fields below a folder."""
    for path in sorted(folder.rglob("*.py")):
        nodes = [ast.parse(path.read_text("utf-8"))]
        while nodes:
            node = nodes.pop()
            body = getattr(node, "body", [])
            public = [x for x in body if not getattr(x, "name", "").startswith("_")]
            nodes += [x for x in public if isinstance(x, ast.ClassDef | ast.FunctionDef)]
            for x in body:
                if isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant):
                    yield re.sub(r"^\s*(Args|Returns|Raises|Yields):$", "", str(x.value.value))


def texts() -> Iterator[tuple[str, str]]:
    """Yield every text with its name."""
    yield "README.md", prose_of_markdown((ROOT / "README.md").read_text("utf-8"))
    yield "CONTRIBUTING.md", prose_of_markdown((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    pages = sorted((ROOT / "docs").rglob("*.md"))
    prose = {str(x.relative_to(ROOT)): prose_of_markdown(x.read_text("utf-8")) for x in pages}
    yield from ((name, text) for name, text in prose.items() if "/api/" not in name)
    yield "all pages of docs/", "\n\n".join(prose.values())
    yield "help of the commands", "\n\n".join(docstrings(SOURCES / "cli"))
    yield "docstrings of public names", "\n\n".join(docstrings(SOURCES))


def measure(text: str) -> tuple[float, float, int]:
    """Return the reading ease, the words a sentence, and the words."""
    text = plain(text)
    words = textstat.lexicon_count(text)
    return textstat.flesch_reading_ease(text), textstat.avg_sentence_length(text), words


def main() -> None:
    """Print the table."""
    print(f"| {'text':36} | reading ease | words a sentence | words |\n|---|---|---|---|")
    for name, text in texts():
        ease, length, words = measure(text)
        if words >= 30:
            print(f"| {name:36} | {ease:12.1f} | {length:16.1f} | {words:5} |")


if __name__ == "__main__":
    main()
