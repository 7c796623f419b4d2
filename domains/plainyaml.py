"""YAML as settings files need it: plain values, and nothing that an untrusted file could do harm with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from domains.errors import ConfigError
from domains.text import shown

MAX_BYTES = 256 * 2**10
MAX_DEPTH = 32
MAX_VALUES = 10_000
"""Counted with all aliases expanded: a few lines of them can stand for billions of values."""

MAX_DIGITS = 256
"""Of a number or a time: YAML reads 1:30 as 90, and a long row of colons takes minutes."""

_NUMBERS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))

_MARKS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("merge", "value"))
"""Of keys that are no value of their own: ``<<`` and ``=``."""


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses deep nesting and many values while it reads, before the interpreter has to give up."""

    depth = values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Go one level deeper."""
        self.depth += 1
        self.values += 1
        try:
            if self.values > MAX_VALUES:
                raise yaml.YAMLError(f"it holds more than {MAX_VALUES} values")
            if self.depth > MAX_DEPTH:
                raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} levels deep")
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def load(text: str) -> Any:
    """Read one YAML document.

    Raises:
        ValueError: invalid YAML, nested too deep, too many values, an alias within itself, a key that is given twice,
            a text that can't be encoded, or a bad number or date.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        _check_keys(loader, node, set())
        value = loader.construct_document(node)
    except MemoryError as error:
        raise ValueError("there is too little memory for it") from error
    except Exception as error:  # a value of the wrong kind under a tag raises whatever its conversion raises
        raise ValueError(shown(" ".join(str(error).split())) or type(error).__name__) from error
    _check(value)
    return value


def load_file(path: Path) -> Any:
    """Read a YAML file of at most 256 KiB; raises ConfigError naming it."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES // 2**10} KiB")
        return load(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split()):.300}") from error


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values a node stands for; raises ValueError if there are too many, or the node contains itself."""
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError("an alias lies within its own definition")
        return known[id(node)]
    known[id(node)] = 0
    count = 1
    if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_DIGITS:
        raise ValueError(f"it holds a number of more than {MAX_DIGITS} digits")
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            count += sum(_count(part, known) for part in (item if isinstance(item, tuple) else (item,)))
            if count > MAX_VALUES:
                raise ValueError(f"it holds more than {MAX_VALUES} values")
    known[id(node)] = count
    return count


def _check_keys(loader: _Loader, node: yaml.Node, seen: set[int]) -> None:
    """Refuse a mapping that holds a key twice, as only the last would count; raises YAMLError naming key and line."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    keys = set()
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):
            _check_keys(loader, part, seen)
        if isinstance(item, tuple) and isinstance(item[0], yaml.ScalarNode):
            key = _key_of(loader, item[0])
            if key in keys:
                line = item[0].start_mark.line + 1
                raise yaml.YAMLError(f"the key {item[0].value!r:.80} in line {line} is given twice")
            keys.add(key)


def _key_of(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """What a mapping takes a key for: yes and true are the same, and so are 1 and 1.0."""
    return node.value if node.tag in _MARKS else loader.construct_object(node)


def _check(value: Any) -> None:
    """Refuse numbers larger than any setting, which would be slow even to print, and text that can't be encoded."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check(key)
            _check(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            _check(item)
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("a whole number is too large")
    elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"a text holds half of a surrogate pair: {value!r:.80}")
