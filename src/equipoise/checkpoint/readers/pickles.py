"""What a pickle is going to do, read off its opcodes without doing any of it."""

import pickletools
import re
from typing import Any

from equipoise.errors import InputError

# What torch.save writes for tensors. torch's own weights_only loader is the lock against code; this list is shorter
# than torch's, because some of what torch allows can still be made to fill the memory (bytearray(bytearray(10**11))).
_REBUILD = frozenset(
    f"torch.{name}"
    for name in (
        "_utils._rebuild_tensor",
        "_utils._rebuild_tensor_v2",
        "_utils._rebuild_parameter",
        "_utils._rebuild_parameter_with_state",
        "_utils._rebuild_sparse_tensor",
        "serialization._get_layout",
        "Size",
        "device",
    )
)
_EMPTY = frozenset({"collections.OrderedDict", "builtins.set", "__builtin__.set"})  # called with nothing, then filled
_DATA = re.compile(r"torch(\.storage)?\.(\w*Storage|b?float\w*|double|half|u?int\w*|bool|complex\w*|long|short)")
_NOTHING, _DICT = "()", "{}"


def require_plain_pickle(file: Any, label: str) -> None:
    """Raise `InputError` unless the pickle that starts here builds only tensors, numbers, strings and containers.

    `file` is open for bytes, and is read to the end of the pickle. The stack is followed with a name for each global,
    and for what is known empty; everything else on it is None.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            _follow(opcode, argument, stack, memo)
    except _Refused as refused:
        raise InputError(
            expected="a checkpoint of tensors",
            found=f"{label}: a pickle that {refused}",
            remedy="if you trust it, load it and torch.save(model.state_dict(), path)",
        ) from None
    except Exception as error:  # whatever a damaged pickle leads to
        raise InputError(
            expected="a checkpoint written by torch.save",
            found=f"{label}: a damaged pickle ({type(error).__name__})",
            remedy="fetch or save it again",
        ) from None


class _Refused(Exception):
    pass


def _follow(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One opcode's effect on the stack; `_Refused` when it calls or builds what a tensor does not need."""
    name = opcode.name
    if name == "GLOBAL":
        stack.append(_allowed(argument.replace(" ", ".")))
    elif name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID") or name.startswith("EXT"):
        raise _Refused(f"makes objects by {name}")
    elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
        memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET", "GET"):
        stack.append(memo[argument])
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        if function not in _REBUILD and not (function in _EMPTY and arguments == _NOTHING):
            raise _Refused(f"calls {function or 'what it built itself'}")
        stack.append(None)
    elif name == "BUILD":
        if stack.pop() != _DICT:
            raise _Refused("sets the state of what it built")
    else:
        _shift(opcode, stack)


def _shift(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    """Any other opcode: it takes what it takes, and leaves what it leaves."""
    before, after = opcode.stack_before, opcode.stack_after
    if pickletools.markobject in before:
        while stack.pop() is not pickletools.markobject:
            pass
        before = before[: before.index(pickletools.markobject)]
    kept = stack[len(stack) - len(before)] if before and after else None  # the list or dict that is being filled
    del stack[len(stack) - len(before) :]
    filled = opcode.name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")
    if opcode.name == "MARK":
        stack.append(pickletools.markobject)
    else:
        pushed = {"EMPTY_TUPLE": _NOTHING, "EMPTY_DICT": _DICT}.get(opcode.name, kept if filled else None)
        stack.extend(pushed for _ in after)


def _allowed(name: str) -> str:
    if name in _REBUILD or name in _EMPTY or _DATA.fullmatch(name):
        return name
    raise _Refused(f"asks for {name}")
