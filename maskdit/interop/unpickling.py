"""Reading pickles that nobody vouches for: nothing in them is imported, called or changed but what a reader lists.

The pure-Python `pickle._Unpickler` is the base because every opcode can be replaced in it; the one in C changes objects
behind `find_class`, and allocates what a memo index asks for. No class or function ever stands on the stack here: a
global is a value of the reader's table, or a placeholder.
"""

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar

from maskdit.interop.tensors import FileError, printable

MAX_STEPS = 2_000_000
"""Opcodes of a pickle, and entries of its tree. A tensor of a state dict needs about 40, an entry of a list one."""
_KEY_LIMIT = 1024  # letters
_KEYS = (str, int, float, bool, bytes, type(None))


class Leaf:
    """A value that a reader's constructors make and that it finishes once the whole pickle is read."""

    @property
    def made_of(self) -> tuple["Leaf", ...]:
        """Leaves that stand in the tree where this one does."""
        return ()

    @property
    def is_tensor(self) -> bool:
        """Whether a file is refused where the leaf would be lost."""
        return True

    def take(self, state: Any) -> None:
        """Takes the state that the pickle gives the value (BUILD)."""
        raise ValueError(f"a {type(self).__name__} takes no state")


@dataclasses.dataclass(frozen=True)
class Build:
    """A global that is built.

    Attributes:
      make: called with the arguments in the pickle; it must check them all.
    """

    make: Callable[..., Any]


@dataclasses.dataclass(eq=False, slots=True)
class Placeholder:
    """A class or function that is not built, and what the pickle would have made with it. Does nothing.

    Attributes:
      name: dotted name, such as `argparse.Namespace`.
      parts: arguments, state and items, kept to find the tensors among them.
    """

    name: str
    parts: list[Any] = dataclasses.field(default_factory=list, repr=False)


class Stream:
    """A stretch of a file that ends where the file does: to read past it is an error, before anything is allocated.

    Attributes:
      path: for messages.
      left: bytes that are not read yet.
    """

    def __init__(self, handle: BinaryIO, size: int, path: str, largest: int):
        self.path = path
        self.left = size
        self._handle = handle
        self._largest = largest

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        if count <= self.left:
            if count > self._largest:
                raise FileError(f"'{self.path}' holds a piece of {count} bytes in its pickle, more than weights need")
            data = self._handle.read(count)
            self.left -= count
            if len(data) == count:
                return data
        raise FileError(f"'{self.path}' ends early, as half a download does: download it again")

    def readline(self) -> bytes:
        """All up to the end of the line, with it."""
        line = self._handle.readline(min(self.left, self._largest))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise FileError(f"'{self.path}' ends early, as half a download does: download it again")
        return line


@dataclasses.dataclass(frozen=True)
class Unpickled:
    """What a pickle holds, before a reader finishes its leaves.

    Attributes:
      root: dicts, lists, tuples, sets, numbers, strings, bytes, leaves and placeholders.
      names: dotted names of the globals that were not built, in the order of the pickle.
      dropped: placeholders, and under the name of who dropped it what else is not in `root`.
      steps: opcodes of the pickle.
    """

    root: Any
    names: tuple[str, ...]
    dropped: tuple[Placeholder, ...]
    steps: int


def load(
    stream: Stream,
    table: Mapping[tuple[str, str], Any],
    persistent: Callable[[Any], Any] | None = None,
    encoding: str = "utf-8",
) -> Unpickled:
    """Reads one pickle; the stream stands behind it afterwards.

    Args:
      stream: the file.
      table: (module, name) of the globals that are known -> a `Build`, or any value that needs no call.
      persistent: what a persistent id stands for; None where there are none.
      encoding: of strings that Python 2 wrote.

    Raises:
      FileError: for whatever is no such pickle.
    """
    try:
        return _Unpickler(stream, table, persistent, encoding).unpickled()
    except FileError:
        raise
    except Exception as error:  # broken pickles end in IndexError, TypeError, UnicodeDecodeError and many others
        raise FileError(
            f"'{stream.path}' holds no readable pickle ({_line(error)}): it is damaged, or no file of weights"
        ) from error


class _Unpickler(pickle._Unpickler):
    """Builds containers, strings and numbers, what the table lists, and placeholders."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    def __init__(self, stream: Stream, table: Mapping, persistent: Callable[[Any], Any] | None, encoding: str):
        super().__init__(stream, encoding=encoding)
        self._stream = stream
        self._table = table
        self._persistent = persistent
        self._entries_left = MAX_STEPS
        self._bytes_left = stream.left + MAX_STEPS
        self._names: dict[str, None] = {}
        self._dropped: list[Placeholder] = []

    def unpickled(self) -> Unpickled:
        base: Any = pickle
        state: Any = self
        state._unframer = base._Unframer(self._stream.read, self._stream.readline)
        state.read, state.readline = state._unframer.read, state._unframer.readline
        state.metastack, state.stack = [], []
        state.append = state.stack.append
        read, dispatch = state.read, self.dispatch
        for step in range(MAX_STEPS):
            opcode = read(1)
            if opcode == pickle.STOP:
                return Unpickled(state.stack.pop(), tuple(self._names), tuple(self._dropped), step)
            dispatch[opcode[0]](self)
        raise FileError(f"'{self._stream.path}' holds a pickle of more than {MAX_STEPS} steps: these are no weights")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._table[module, name]
        except KeyError:
            dotted = printable(f"{module[:_KEY_LIMIT]}.{name[:_KEY_LIMIT]}")
            self._names[dotted] = None
            return self._placeholder(dotted)

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise ValueError("a reference to something outside the pickle")
        if type(pid) is not tuple:
            raise ValueError("a reference that is no tuple")
        self._charge(pid)
        return self._persistent(pid)

    def _charge(self, args: tuple[Any, ...]) -> None:
        """Counts what a call may read or copy of its arguments, which cost the file nothing where they are in its memo.

        What is written once for each call never counts for more than the opcodes and the bytes of the pickle.
        """
        self._entries_left -= len(args)
        for part in args if self._entries_left >= 0 else ():
            if type(part) in (str, bytes):
                self._bytes_left -= len(part)
            elif type(part) is int:
                self._bytes_left -= part.bit_length() // 8
            elif type(part) in (list, tuple, dict, set, frozenset):
                self._entries_left -= len(part)
        if self._entries_left < 0 or self._bytes_left < 0:
            raise FileError(
                f"'{self._stream.path}' calls for the same values over and over, for more than the file holds: these "
                "are no weights"
            )

    def _placeholder(self, name: str, *parts: Any) -> Placeholder:
        made = Placeholder(name, list(parts))
        self._dropped.append(made)
        return made

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise ValueError("arguments that are no tuple")
        if isinstance(function, Placeholder):
            return self._placeholder(function.name, function, args)
        if not isinstance(function, Build):
            raise ValueError(f"a call of a {type(function).__name__}")
        self._charge(args)
        made = function.make(*args)
        self._placeholder("an argument that is not used", args)
        return made

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_newobj_ex(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        if not isinstance(self.stack[-1], Placeholder):
            raise ValueError("arguments by name")
        self.stack[-1] = self._call(self.stack[-1], (args, keywords))

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        args = tuple(self.pop_mark())  # also changes what `append` is
        self.append(self._call(self.find_class(module, name), args))

    def _load_obj(self) -> None:
        function, *args = self.pop_mark()
        self.append(self._call(function, tuple(args)))

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.parts.append(state)
        elif isinstance(target, Leaf):
            target.take(state)
        elif type(target) is dict:  # an OrderedDict: the `_metadata` of a state dict, which holds version numbers
            self._placeholder("collections.OrderedDict", state)
        else:
            raise ValueError(f"a state for a {type(target).__name__}")

    def _load_append(self) -> None:
        self._fill(list, [self.stack.pop()])

    def _load_appends(self) -> None:
        self._fill(list, self.pop_mark())

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(dict, [key, value])

    def _load_setitems(self) -> None:
        self._fill(dict, self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(dict, items)

    def _load_additems(self) -> None:
        self._fill(set, self.pop_mark())

    def _fill(self, kind: type, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            target.parts.append(items)
        elif type(target) is not kind:
            raise ValueError(f"items for a {type(target).__name__}")
        elif kind is list:
            self.stack[-1].extend(items)
        elif kind is set:
            self.stack[-1].update(_keys(items))
        else:
            self.stack[-1].update(zip(_keys(items[::2]), items[1::2], strict=True))

    def _load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(_keys(items)))

    def _load_bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # the inherited one allocates before it reads

    def _refuse(self) -> None:
        raise ValueError("an entry of copyreg's registry, or a buffer outside the pickle")

    dispatch |= {
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_reduce,
        pickle.NEWOBJ_EX[0]: _load_newobj_ex,
        pickle.INST[0]: _load_inst,
        pickle.OBJ[0]: _load_obj,
        pickle.BUILD[0]: _load_build,
        pickle.APPEND[0]: _load_append,
        pickle.APPENDS[0]: _load_appends,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.BYTEARRAY8[0]: _load_bytearray8,
        **dict.fromkeys(
            (code[0] for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)),
            _refuse,
        ),
    }


def _keys(keys: list[Any]) -> list[Any]:
    """The keys, which must be cheap to hash and to compare, however often: no nests, nothing long.

    Of tuples only those of strings, whose hashes a file cannot foresee: many keys of one hash take time without end.
    """
    for key in keys:
        if type(key) is tuple:
            if len(key) > _KEY_LIMIT or not all(type(part) is str for part in key):
                raise ValueError("a tuple as key that is not of a few strings")
            length = sum(map(len, key))
        elif type(key) in _KEYS or type(key) is Placeholder:
            length = len(key) if type(key) in (str, bytes) else 0
        else:
            raise ValueError(f"a {type(key).__name__} as key")
        if length > _KEY_LIMIT or (type(key) is int and key.bit_length() > 64):
            raise ValueError(f"a key of more than {_KEY_LIMIT} letters or 64 bits")
    return keys


def ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """A `collections.OrderedDict` from nothing, as pickles of Python 3 make it, or from pairs, as those of Python 2."""
    if type(items) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in items):
        raise ValueError("an OrderedDict of no pairs")
    _keys([key for key, _ in items])
    return dict(items)


def _line(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}")
