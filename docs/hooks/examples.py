"""Docstring sections that are called Example, read as code: the parser knows the name Examples only."""

import re
from typing import Any

from griffe import Extension, Object


class ExampleSections(Extension):
    """Rename the section Example; its code is else read as Markdown, in which ``a["b"]`` is a link."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)
