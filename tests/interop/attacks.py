"""Malicious pickles as opcodes, a trap that tells whether they ran anything, and what every refusal is held to."""

import argparse
import collections
import contextlib
import copyreg
import pathlib
import struct
import sys
from collections.abc import Callable, Iterator

import pytest

from maskdit.interop.tensors import FileError

RUN = "__import__('os').system('{}')"
EXTENSION = 0xF0
"""The code in copyreg's registry that the trap gives `os.system`."""


def text(value: str) -> bytes:
    """The opcode of a string."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def glob(module: str, name: str) -> bytes:
    """The opcode of a global."""
    return f"c{module}\n{name}\n".encode()


def stack_glob(module: str, name: str) -> bytes:
    """The opcodes of a global in protocol 4, where dots in the name reach attributes."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93"


LISTED: dict[str, tuple[str, Callable[[str], bytes]]] = {
    "reduce": ("os.system", lambda c: glob("os", "system") + text(c) + b"\x85R"),
    "posix": ("posix.system", lambda c: glob("posix", "system") + text(c) + b"\x85R"),
    "inst": ("posix.system", lambda c: b"(" + text(c) + b"iposix\nsystem\n"),
    "obj": ("os.system", lambda c: b"(" + glob("os", "system") + text(c) + b"o"),
    "newobj": ("subprocess.Popen", lambda c: glob("subprocess", "Popen") + b"]" + text(c) + b"a\x85\x81"),
    "newobj_ex": ("subprocess.Popen", lambda c: glob("subprocess", "Popen") + text(c) + b"\x85}\x92"),
    "eval": ("builtins.eval", lambda c: glob("builtins", "eval") + text(RUN.format(c)) + b"\x85R"),
    "exec": ("__builtin__.exec", lambda c: glob("__builtin__", "exec") + text(RUN.format(c)) + b"\x85R"),
    "partial": (
        "functools.partial",
        lambda c: glob("functools", "partial") + glob("os", "system") + text(c) + b"\x86R)R",
    ),
    "getattr": (
        "builtins.getattr",
        lambda c: glob("builtins", "getattr") + glob("os", "path") + text("os") + b"\x86R" + text(c) + b"\x85R",
    ),
    "dotted": ("collections.abc.sys.modules", lambda c: stack_glob("collections", "abc.sys.modules")),
    "method": (
        "collections.OrderedDict.fromkeys",
        lambda c: stack_glob("collections", "OrderedDict.fromkeys") + text(c) + b"\x85R",
    ),
    "torch's": (
        "torch.FloatStorage.__class__",
        lambda c: stack_glob("torch", "FloatStorage.__class__") + text(c) + b"\x85R",
    ),
    "numpy's": ("numpy.dtype.__class__", lambda c: stack_glob("numpy", "dtype.__class__") + text(c) + b"\x85R"),
    "numpy's os": ("numpy.f2py.os.system", lambda c: glob("numpy.f2py", "os.system") + text(c) + b"\x85R"),
    "numpy's load": ("numpy.load", lambda c: glob("numpy", "load") + text(c) + b"\x85R"),
    "import": ("marker_module.x", lambda c: glob("marker_module", "x")),
    "state": ("argparse.Namespace", lambda c: glob("argparse", "Namespace") + b")\x81}" + text("a") + b"K\x01sb"),
    "class state": ("argparse.Namespace", lambda c: glob("argparse", "Namespace") + b"}" + text("hit") + b"K\x01sb"),
    "items": (
        "os.environ",
        lambda c: glob("os", "environ") + text("MARKER") + text("1") + b"sK\x01a(K\x01e(K\x01\x90",
    ),
    "slots": ("sys.modules", lambda c: glob("sys", "modules") + b"N}" + text("hit") + b"K\x01s\x86b"),
    "omegaconf": ("omegaconf.dictconfig.DictConfig", lambda c: glob("omegaconf.dictconfig", "DictConfig") + b")\x81}b"),
    "as key": ("os.system", lambda c: b"}" + glob("os", "system") + text(c) + b"\x85RNs"),
    "in a set": ("os.system", lambda c: b"(" + glob("os", "system") + text(c) + b"\x85R\x91"),
}
"""Name -> the global that is listed and not called, and the opcodes for a command."""

REFUSED: dict[str, Callable[[str], bytes]] = {
    "known class": lambda c: glob("collections", "OrderedDict") + b"}" + text("hit") + b"K\x01sb",
    "known item": lambda c: glob("collections", "OrderedDict") + text("hit") + b"K\x01s",
    "call of text": lambda c: text(c) + b")R",
    "call of list": lambda c: b"])R",
    "arguments": lambda c: glob("os", "system") + text(c) + b"R",
    "extension": lambda c: b"\x82" + bytes([EXTENSION]) + text(c) + b"\x85R",
    "extension of two bytes": lambda c: b"\x83" + bytes([EXTENSION, 0]) + text(c) + b"\x85R",
    "tuple state": lambda c: b")}b",
    "buffer": lambda c: b"\x97",
    "persistent": lambda c: text(c) + b"Q",
    "persistent text": lambda c: b"P1\n",
}
"""A state, call or entry for something that takes none, copyreg's registry, things that stand elsewhere: errors."""

HUGE = {
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 60),
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 60),
    "text": b"\x8d" + struct.pack("<Q", 1 << 60),
    "frame": b"\x95" + struct.pack("<Q", 1 << 60),
    "long": b"\x8b" + struct.pack("<i", (1 << 31) - 1),
    "string": b"T" + struct.pack("<i", (1 << 31) - 1),
    "digits": b"I" + b"9" * 5000 + b"\n",
    "laughs": b")" + b"2\x86" * 60,
    "laughing key": b"})" + b"2\x86" * 60 + b"Ns",
    "laughing set": b"\x8f()" + b"2\x86" * 60 + b"\x90",
    "deep": b")" + b"\x85" * 50_000,
    "itself": b"]q\x00h\x00a",
    "itself by a dict": b"}q\x00K\x01h\x00s",
    "long key": b"}\x8a\xff" + b"\x01" * 255 + b"Ns",
}
"""What asks for more memory or time than there is, or holds itself: errors."""

HARMLESS = {"memo": b"}r" + b"\xff" * 4, "deep calls": b"}" + glob("a", "b") + b")R" * 20_000 + b"0"}
"""What only looks so, of an empty dict."""


def memo(place: int, value: bytes) -> bytes:
    """The opcodes that put a value into the memo, and nothing else."""
    return value + b"q" + bytes([place]) + b"0"


def often(call: bytes, times: int = 4000) -> bytes:
    """A list of what the opcodes give, many times."""
    return b"](" + call * times + b"e"


def long_int(value: int, size: int) -> bytes:
    """The opcode of an integer with a byte over and over."""
    return b"\x8b" + struct.pack("<i", size) + bytes([value]) * size


DTYPE = (
    glob("numpy", "dtype") + text("f4") + b"\x85R(K\x03" + text(">") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)
EMPTY_ARRAY = glob("numpy.core.multiarray", "_reconstruct") + glob("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
BYTES = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
STATE = b"(K\x01J" + struct.pack("<i", 1 << 18) + b"\x85" + DTYPE + b"\x89" + BYTES + b"t"
NOTHINGS = b"(" + b"N" * 100_000 + b"t"
PAIRS = memo(9, b"K\x01K\x02\x86") + b"](" + b"h\x09" * 100_000 + b"e"

REPEATED: dict[str, tuple[str, str, bytes]] = {
    "bytes as text": (
        "numpy",
        "over and over",
        memo(0, glob("_codecs", "encode"))
        + memo(1, text("a" * (1 << 20)))
        + memo(2, text("latin1"))
        + often(b"h\x00h\x01h\x02\x86R"),
    ),
    "one array": ("numpy", "", memo(0, EMPTY_ARRAY + STATE + b"b") + often(b"h\x00")),
    "one state": ("numpy", "more bytes than the file", memo(0, STATE) + often(EMPTY_ARRAY + b"h\x00b")),
    "one text of Python 2": (
        "numpy",
        "more bytes than the file",
        memo(0, STATE.replace(BYTES, text("\0" * (1 << 20)))) + often(EMPTY_ARRAY + b"h\x00b"),
    ),
    "long sizes": (
        "numpy",
        "a size that is no number",
        memo(0, long_int(0x7F, 1 << 20)) + EMPTY_ARRAY + b"(K\x01(" + b"h\x00" * 32 + b"t" + DTYPE + b"\x89C\x04aaaatb",
    ),
    "many axes": ("numpy", "no tuple of up to 32", EMPTY_ARRAY + b"(K\x01" + NOTHINGS + DTYPE + b"\x89C\x00tb"),
    "deep names": (
        "numpy",
        "",
        memo(0, glob("numpy", "dtype"))
        + memo(1, text("f4"))
        + b"".join(b"}" + text("a" * 1000) for _ in range(60))
        + often(b"h\x00h\x01\x85R", 20_000)
        + b"s" * 60,
    ),
    "long global": (
        "torch",
        "",
        memo(0, text("a" * (1 << 20))) + often(b"h\x00h\x00\x93"),
    ),
    "a list as size": (
        "torch",
        "32 sizes",
        memo(0, b"](" + b"K\x01" * 100_000 + b"e") + often(glob("torch", "Size") + b"h\x00\x85R"),
    ),
    "pairs": (
        "torch",
        "over and over",
        memo(0, PAIRS) + memo(1, glob("collections", "OrderedDict")) + often(b"h\x01h\x00\x85R"),
    ),
    "text as pairs": ("torch", "no pairs", glob("collections", "OrderedDict") + text("a" * (1 << 20)) + b"\x85R"),
    "long pair": ("torch", "no pairs", glob("collections", "OrderedDict") + b"]" + NOTHINGS + b"a\x85R"),
    "arguments": (
        "torch",
        "over and over",
        memo(0, NOTHINGS) + memo(1, glob("collections", "defaultdict")) + often(b"h\x01h\x00R"),
    ),
    "reference": (
        "torch",
        "over and over",
        memo(0, b"(" + text("module") + b"N" * 100_000 + b"t") + often(b"h\x00Q"),
    ),
    "call within a call": (
        "torch",
        "not known",
        memo(0, NOTHINGS)
        + glob("torch._tensor", "_rebuild_from_type_v2")
        + b"("
        + glob("torch._tensor", "_rebuild_from_type_v2")
        + b"N("
        + glob("collections", "defaultdict")
        + b"Nh\x00NtNtR",
    ),
    "tuple as key": ("torch", "tuple as key", memo(0, b"(" + text("a") * 2000 + b"t") + b"}" + b"h\x00Ns" * 4000),
    "numbers as key": ("torch", "tuple as key", b"}K\x01K\x02\x86Ns"),
    "text as key": (
        "torch",
        "a key of more than",
        memo(0, text("a" * (1 << 20))) + memo(1, text("a" * (1 << 20))) + b"}" + b"h\x00Nsh\x01Ns" * 4000,
    ),
}
"""Name -> the reader, what it says ('' where the file is sound), and opcodes that use one large argument again and
again. Without bounds each takes minutes, hours or many gigabytes."""


@contextlib.contextmanager
def trap(folder: pathlib.Path) -> Iterator[str]:
    """Gives a command for an attack to run, and fails where it ran, a module was imported or a class changed."""
    hit = folder / "hit"
    (folder / "marker_module.py").write_text(f"open({str(hit)!r}, 'w').close(); x = 1")
    sys.path.insert(0, str(folder))
    copyreg.add_extension("os", "system", EXTENSION)
    try:
        yield f"touch {hit}"
    finally:
        copyreg.remove_extension("os", "system", EXTENSION)
        sys.path.remove(str(folder))
    assert not hit.exists() and "marker_module" not in sys.modules
    assert not any(hasattr(target, "hit") for target in (argparse.Namespace, collections.OrderedDict, sys))


def refused(read: Callable, path: pathlib.Path, *words: str) -> None:
    """Holds that a reader answers a file with one line that names it and has these words."""
    with pytest.raises(FileError) as caught:
        read(path)
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 800
    assert all(word in message for word in words), message
