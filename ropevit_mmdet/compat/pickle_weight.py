"""Weighs a pickle before it is loaded: how much memory and time it may take.

A pickle of some bytes can name one part twice, in a part that is named twice, and so on: whoever
walks through it, or has it as the key of a dict, never comes to an end. It can also be one empty
dict after the other, a byte each. Needs the standard library alone.
"""

import pickle
import pickletools
from typing import BinaryIO

MB = 2**20  # bytes
# What a pickle makes may weigh so much, and so much more for each of its bytes. Checkpoints of
# trainings weigh 3 to 7 times their bytes, results 1 to 4 times.
FREE, PER_BYTE = 16 * MB, 24
# Bytes that they take at least; of a text also its length.
NUMBER, CONTAINER = 16, 64
# A text in another encoding is at most that many times as long.
ENCODED = 4


class TooMuchError(pickle.UnpicklingError):
    """A pickle makes much more than it has bytes."""

    def __init__(self, what: str = "its values, of so few bytes,") -> None:
        super().__init__(f"{what} could take any amount of memory or time")


def check_weight(pickled: bytes | BinaryIO, free: int = FREE) -> None:
    """Follows the operations of one pickle to its end, and adds up what they make.

    What is fetched from the memo counts in full each time, as if it were written out again. Raises
    TooMuchError; ValueError, LookupError or AttributeError where the operations are invalid.
    """
    made = 0
    stack, marks, memo = [], [], {}  # of weights, in a list where the value may grow
    fetched: set[int] = set()  # addresses of such lists, which the memo keeps
    encode = [NUMBER]  # stands for that function
    for operation, argument, position in pickletools.genops(pickled):
        kind, marked, count = _EFFECTS[operation.name]
        if kind == _LEAF:
            made += NUMBER
            stack.append(NUMBER + len(argument) if argument.__class__ in _TEXTS else NUMBER)
        elif kind == _PUT:
            place = len(memo) if argument is None else argument
            if place > position:  # the memo is a table that is made as long as its highest place
                raise TooMuchError(f"place {place} of its memo")
            memo[place] = stack[-1]
        elif kind == _FETCH:
            value = stack[-1] if argument is None else memo[argument]
            if value.__class__ is list:
                fetched.add(id(value))
            made += value[0] if value.__class__ is list else value
            stack.append(value)
        elif kind == _MARK:
            made += CONTAINER
            marks.append(len(stack))
        elif kind == _NAME:
            made += NUMBER
            stack.append(encode if argument == "_codecs encode" else NUMBER + len(argument))
        elif kind == _POP and marks and marks[-1] == len(stack):
            marks.pop()
        elif kind != _NOTHING:
            start = marks.pop() if marked else len(stack) - count
            parts = stack[start:]
            del stack[start:]
            weight = sum([part[0] if part.__class__ is list else part for part in parts])
            if kind == _GROW:
                if id(stack[-1]) in fetched:  # what holds it was weighed without this
                    raise TooMuchError
                stack[-1][0] += weight
            elif kind == _MAKE:
                if operation.name == "REDUCE" and parts[0] is encode:
                    weight *= ENCODED
                    made += weight
                made += CONTAINER
                stack.append([CONTAINER + weight])
        if made > free + PER_BYTE * position:
            raise TooMuchError


_TEXTS = (str, bytes, bytearray)
_NOTHING, _LEAF, _NAME, _PUT, _FETCH, _MARK, _POP, _GROW, _MAKE = range(9)


def _effect(operation: pickletools.OpcodeInfo) -> tuple[int, bool, int]:
    """What an operation does, whether it takes all above a mark, and how many values if not."""
    name, before = operation.name, operation.stack_before
    marked = pickletools.markobject in before
    if name in ("PROTO", "FRAME", "STOP"):
        kind = _NOTHING
    elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        kind = _PUT
    elif name in ("GET", "BINGET", "LONG_BINGET", "DUP"):
        kind = _FETCH
    elif name == "MARK":
        kind = _MARK
    elif name == "GLOBAL":
        kind = _NAME
    elif name in ("POP", "POP_MARK"):
        kind = _POP
    elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"):
        return _GROW, marked, len(before) - 1
    elif before or name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
        kind = _MAKE
    else:
        kind = _LEAF
    return kind, marked, len(before)


_EFFECTS = {operation.name: _effect(operation) for operation in pickletools.opcodes}
