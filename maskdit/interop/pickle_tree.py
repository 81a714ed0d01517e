"""What a pickle's tree becomes once the whole pickle is read: its leaves finished, nothing lost, all within bounds."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from maskdit.interop.tensors import FileError, printable
from maskdit.interop.unpickling import MAX_STEPS, Leaf, Placeholder, Unpickled

MAX_DEPTH = 64


def finished(unpickled: Unpickled, path: str, finish: Callable[[Any], Any]) -> Any:
    """The tree of a pickle with its leaves finished, each once, however often it stands there.

    Args:
      unpickled: what `load` gave.
      path: the file, for messages.
      finish: a leaf to what stands in the tree for it; a ValueError says what is wrong with the leaf.

    Raises:
      FileError: for a tree that is nested too deep, holds itself, or is the same few containers over and over; for a
        leaf that cannot be finished; and for a leaf that stands within a placeholder alone.
    """
    done: dict[int, Any] = {}
    found: set[int] = set()
    names: list[Any] = []  # the keys that lead to the value
    left = min(10 * unpickled.steps, MAX_STEPS)  # more entries than opcodes come only of containers used again

    def visit(value: Any) -> Any:
        if isinstance(value, Leaf):
            if id(value) not in done:
                found.update(map(id, (value, *value.made_of)))
                done[id(value)] = leaf(value)
            return done[id(value)]
        if type(value) is Placeholder:
            found.add(id(value))
        elif type(value) is dict:
            return dict(zip(value, tuple(entries(value.items())), strict=True))
        elif type(value) in (list, tuple):
            return type(value)(entries(enumerate(value)))
        return value

    def entries(items: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
        nonlocal left
        for key, value in items:
            left -= 1
            if len(names) == MAX_DEPTH or left < 0:
                raise FileError(f"'{path}' holds containers nested without end: these are no weights")
            names.append(key)
            yield visit(value)
            names.pop()

    def leaf(value: Leaf) -> Any:
        try:
            return finish(value)
        except ValueError as error:
            raise FileError(f"'{path}' holds a damaged tensor at {_place(names)}: {error}") from error

    tree = visit(unpickled.root)
    _check_nothing_is_lost(unpickled, path, found)
    return tree


def _check_nothing_is_lost(unpickled: Unpickled, path: str, found: set[int]) -> None:
    placed = sorted(unpickled.dropped, key=lambda holder: id(holder) not in found)
    for holder, leaf in _leaves(placed):
        if leaf.is_tensor and id(leaf) not in found:
            names = _way(unpickled.root, holder) if id(holder) in found else None
            where = "" if names is None else f" (at {_place(names)})"
            raise FileError(
                f"'{path}' holds a tensor that only {holder.name}{where} leads to, which is not built because no code "
                "of a file is run: save it again as a dict of tensors, such as model.state_dict()"
            )


def _way(value: Any, wanted: Placeholder) -> list[Any] | None:
    """The keys that lead from a tree, which was found to be within bounds, to a placeholder in it."""
    if value is wanted:
        return []
    items = value.items() if type(value) is dict else enumerate(value) if type(value) in (list, tuple) else ()
    for key, inner in items:
        names = _way(inner, wanted)
        if names is not None:
            return [key, *names]
    return None


def _leaves(holders: list[Placeholder]) -> Iterator[tuple[Placeholder, Leaf]]:
    """The leaves within placeholders, each once, with the first placeholder that leads there."""
    seen: set[int] = set()
    for holder in holders:
        stack: list[Any] = [holder]
        while stack:
            value = stack.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, Leaf):
                yield holder, value
            elif type(value) is Placeholder:
                stack += value.parts
            elif type(value) is dict:
                stack += [*value.keys(), *value.values()]
            elif type(value) in (list, tuple, set, frozenset):
                stack += value


def _place(names: list[Any]) -> str:
    return ".".join(printable(str(name)) if type(name) in (str, int) else "?" for name in names) or "the top level"
