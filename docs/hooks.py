"""What the site adds to MkDocs: pages from the repository's root, links that leave docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
# Weights of pages in the search: first the pages that answer, last the second pages of results.
SEARCH = (("glossary.md", 2.0), ("how-to/", 1.5), ("start.md", 1.5), ("results/index.md", 1.5))
SECOND_PAGE = "/details.md", 0.2
# A link to a file of the repository that is no page: its text, and the path below the root.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?!docs/)[\w./-]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in the pages that stand at the repository's root, where people look for them."""
    for name in PAGES:
        text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files that the site does not have, and weigh the page in the search.

    What stands after a fence's language is for the tests.
    """
    source = page.file.src_uri
    weights = [weight for start, weight in SEARCH if source.startswith(start)]
    weights += [SECOND_PAGE[1]] * source.endswith(SECOND_PAGE[0])
    if weights:
        page.meta["search"] = {"boost": weights[0]}
    here = Path(source).parent

    def named(match: re.Match[str]) -> str:
        text, target = match.groups()
        up = match[0].count("../")
        if up <= len(here.parts):  # a page of the site
            return match[0]
        code = f"`{target}`"
        return code if target.rstrip("/").endswith(text.strip("`")) else f"{text} ({code})"

    return _OUTSIDE.sub(named, markdown.replace("```python runnable", "```python"))
