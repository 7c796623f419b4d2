"""The package page, which is the README with absolute links and pictures, and how a checkout is installed in place.

Everything else is in pyproject.toml. In place means a plain path entry. Setuptools' default for this layout, a finder
that is asked last, loses to any folder called ``domains`` or ``deploy`` beside a user's script, even one of pictures.
"""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = "https://github.com/lifelong-reid/lifelong-reid"
RAW = "https://raw.githubusercontent.com/lifelong-reid/lifelong-reid/main"


def absolute(readme: str) -> str:
    """Point pictures at their bytes and other relative links at the repository's page for them."""
    readme = re.sub(r"!\[([^\]]*)\]\((?!https?:)([^)]+)\)", rf"![\1]({RAW}/\2)", readme)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", rf"[\1]({REPOSITORY}/blob/main/\2)", readme)


setup(
    long_description=absolute(Path(__file__).with_name("README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
    options={"editable_wheel": {"mode": "compat"}},
)
