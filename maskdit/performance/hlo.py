"""What a compiled program does, read off its text: collectives with their bytes, and the compiler's estimated cycles.

XLA's own cost analysis counts a loop's body once and knows no collectives. Here every computation is followed from the
entry with the number of times that it runs: loop bodies by their trip counts. Only TPU programs carry estimates; a
synchronous collective carries none.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
"""Kinds of collectives."""

_BITS = {"pred": 8, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b(pred|c64|c128|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = (.*)$")
_CALLED = re.compile(r"(?:calls|body|called_computations|branch_computations|true_computation|false_computation)=")
_NAMES = re.compile(r"%([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_START = 'custom_call_target="AsyncCollectiveStart"'
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a program.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole tensor on one device, in one run: what a gather gives, what a reduction takes.
      count: how often it runs.
      group: devices that take part together; 0 where the text does not tell.
      operation: the traced operation that it comes from.
      asynchronous: whether other work can go on meanwhile.
    """

    kind: str
    bytes: int
    count: int
    group: int
    operation: str
    asynchronous: bool

    @property
    def total(self) -> int:
        """Bytes of all its runs."""
        return self.bytes * self.count

    @property
    def wire(self) -> float:
        """Bytes that a device sends for all its runs, on a ring: n - 1 of n parts, twice for a reduction."""
        share = (self.group - 1) / self.group if self.group > 1 else 1.0
        return self.total * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Cycles:
    """A program's estimated cycles.

    Attributes:
      by_class: cycles by class of operation: `products`, `element-wise`, `copies`, `collectives`, `kernels`, `other`.
      missing: name of an operation -> how many of its runs carry no estimate.
    """

    by_class: dict[str, int]
    missing: dict[str, int]

    @property
    def total(self) -> int:
        """Cycles of all classes."""
        return sum(self.by_class.values())


@dataclasses.dataclass
class _Instruction:
    name: str
    type: str
    opcode: str
    operands: str
    rest: str


Program = dict[str, list[_Instruction]]


def collectives(text: str) -> list[Collective]:
    """The collectives that one device takes part in, each with the times that it runs.

    Args:
      text: a compiled program, `compiled.as_text()`.
    """
    program, entry = _parse(text)
    started = {
        _channel(item)
        for body in program.values()
        for item in body
        if _collective(item) and any(_START in one.rest for one in body)
    }
    types = {item.name: item.type for body in program.values() for item in body}
    found = []
    for name, times, depth in _executed(program, entry):
        starts = any(_START in item.rest for item in program[name])
        for item in filter(_collective, program[name]):
            if depth == "fused" and not starts and _channel(item) in started:
                continue  # the same one again, in the work that goes on beside it
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else _kind(item)
            later = item.opcode.endswith("-start") or starts or depth == "async"
            if _group(item) == 1:
                continue  # each device with itself
            size = _payload(kind, item, types)
            found.append(Collective(kind, size, times, _group(item), _operation(item), later))
    return found


def cycles(text: str) -> Cycles:
    """The compiler's estimate of a program's cycles on one core; empty where it makes none.

    Args:
      text: a compiled program, `compiled.as_text()`.
    """
    program, entry = _parse(text)
    by_class: collections.Counter[str] = collections.Counter()
    missing: collections.Counter[str] = collections.Counter()
    for name, times, depth in _executed(program, entry):
        if depth == "fused":
            continue
        for item in program[name]:
            estimate = _CYCLES.search(item.rest)
            if estimate:
                by_class[_class(item, program)] += times * int(estimate.group(1))
            elif _collective(item) or item.opcode in ("custom-call", "sort", "fusion"):
                missing[_label(item, program)] += times
    return Cycles(dict(by_class), dict(missing))


def _parse(text: str) -> tuple[Program, str]:
    program: Program = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header and not line.startswith("HloModule"):
            current = program.setdefault(header.group(2), [])
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current.append(_instruction(*found.groups()))
    return program, entry


def _instruction(name: str, text: str) -> _Instruction:
    kind_ends = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    call = text[kind_ends:].lstrip()
    opens = call.index("(")
    closes = _closing(call, opens)
    return _Instruction(name, text[:kind_ends], call[:opens], call[opens + 1 : closes], call[closes + 1 :])


def _closing(text: str, opens: int) -> int:
    depth = 0
    for place in range(opens, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text) - 1


def _executed(program: Program, entry: str) -> Iterator[tuple[str, int, str]]:
    """Each computation that runs: its name, how often, and whether inside a fusion, an async call or neither."""
    waiting = [(entry, 1, "")]
    while waiting:
        name, times, depth = waiting.pop()
        yield name, times, depth
        for item in program[name]:
            inner = "fused" if item.opcode == "fusion" or depth == "fused" else depth
            if item.opcode == "async-start":
                inner = "async"
            if item.opcode in ("async-update", "async-done"):
                continue
            runs = times * _trips(item, program) if item.opcode == "while" else times
            waiting += [(called, runs, inner) for called in _called(item) if called in program]


def _called(item: _Instruction) -> list[str]:
    names: list[str] = []
    for found in _CALLED.finditer(item.rest):
        rest = item.rest[found.end() :]
        names += _NAMES.findall(rest[: rest.index("}") + 1] if rest.startswith("{") else rest.split(",")[0])
    if item.opcode == "call":
        names += re.findall(r"to_apply=%([\w.\-]+)", item.rest)
    return names


def _trips(item: _Instruction, program: Program) -> int:
    """How often a loop runs: as XLA knows it, else the bound that its condition compares with."""
    known = _TRIPS.search(item.rest)
    if known:
        return int(known.group(1))
    condition = re.search(r"condition=%([\w.\-]+)", item.rest)
    bounds = (
        [
            int(one.operands)
            for one in program.get(condition.group(1), [])
            if condition and one.opcode == "constant" and one.operands.isdigit()
        ]
        if condition
        else []
    )
    return max(bounds, default=1)


def _payload(kind: str, item: _Instruction, types: dict[str, str]) -> int:
    if kind == "all-gather" and item.opcode.endswith("-start"):
        return _bytes(item.type) - _operand_bytes(item, types)  # a start gives its operands again, and the results
    if kind in ("all-gather", "all-to-all", "collective-permute") and not item.opcode.endswith("-start"):
        return _bytes(item.type)
    return _operand_bytes(item, types)


def _operand_bytes(item: _Instruction, types: dict[str, str]) -> int:
    if found := _bytes(item.operands):
        return found
    return sum(_bytes(types.get(name, "")) for name in _NAMES.findall(item.operands))


def _bytes(types: str) -> int:
    total = 0
    for name, bits, sides in _SHAPE.findall(types):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        total += count * (_BITS.get(name) or int(bits)) // 8
    return total


def _group(item: _Instruction) -> int:
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", item.rest)
    if listed:
        return listed.group(1).count(",") + 1
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", item.rest)
    if counted:
        return int(counted.group(1))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", item.rest)
    if not named:
        return 0
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named.group(1)))
    group = 1
    for axis in re.findall(r"'(\w+)'", named.group(2)):
        group *= int(sizes[axis])
    return group


def _collective(item: _Instruction) -> bool:
    return _kind(item) in KINDS


def _kind(item: _Instruction) -> str:
    return item.opcode.removesuffix("-start")


def _channel(item: _Instruction) -> str:
    found = re.search(r"channel_id=(\d+)", item.rest)
    return found.group(1) if found else item.name


def _operation(item: _Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', item.rest)
    return found.group(1) if found else item.name


def _label(item: _Instruction, program: Program) -> str:
    target = re.search(r'custom_call_target="([^"]*)"', item.rest)
    if target:
        return f"custom-call {target.group(1)}"
    if item.opcode != "fusion":
        return item.opcode if item.opcode.endswith("-start") else f"synchronous {item.opcode}"
    names = _called(item)
    inside = [one for name in names for one in program.get(name, [])]
    if any("AsyncCollective" in one.rest for one in inside):
        return "start or end of an asynchronous collective"
    if any(name.startswith("all-reduce-scatter") for name in names):
        return "synchronous reduce-scatter"
    named = [_label(one, program) for one in inside if one.opcode == "custom-call" or _collective(one)]
    return f"fusion of {named[0]}" if named else "fusion"


def _class(item: _Instruction, program: Program) -> str:
    """The class of an operation that carries an estimate, by what a fusion holds."""
    inside = [one.opcode for name in _called(item) for one in program.get(name, [])] or [item.opcode]
    if any(opcode in ("dot", "convolution") for opcode in inside):
        return "products"
    if any(opcode.removesuffix("-start") in KINDS for opcode in inside):
        return "collectives"
    if "custom-call" in inside and item.opcode == "custom-call":
        return "kernels"
    if all(opcode in _MOVES for opcode in inside):
        return "copies"
    return "element-wise" if item.opcode == "fusion" else "other"


_MOVES = (
    "parameter", "copy", "transpose", "reshape", "bitcast", "slice", "dynamic-slice", "dynamic-update-slice", "pad",
    "concatenate", "tuple", "get-tuple-element", "constant", "broadcast", "copy-start", "copy-done",
)  # fmt: skip
