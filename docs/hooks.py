"""What the site adds to MkDocs: pages from the repository's root, links that leave docs/."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
# A link to a file of the repository that is no page: its text, and the path below the root.
_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?!docs/)[\w./-]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take in the pages that stand at the repository's root, where people look for them."""
    for name in PAGES:
        text = (ROOT / name).read_text("utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files that the site does not have, where the repository's readers can follow a link.

    What stands after a fence's language is for the tests.
    """
    here = Path(page.file.src_uri).parent

    def named(match: re.Match[str]) -> str:
        text, target = match.groups()
        up = match[0].count("../")
        if up <= len(here.parts):  # a page of the site
            return match[0]
        code = f"`{target}`"
        return code if target.rstrip("/").endswith(text.strip("`")) else f"{text} ({code})"

    return _OUTSIDE.sub(named, markdown.replace("```python runnable", "```python"))
