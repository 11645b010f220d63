"""Bounds on a pickle, checked before any of it is unpickled.

Unpickling allocates what a file declares: ten bytes can ask for a memo of
4 GB, keys of one hash take quadratic time, and the hash of a deep tuple ends
the process. `check` reads the opcodes, skips long arguments, and follows only
which kinds of values are on the stack.
"""

import io
import mmap
import os
import pickle
import pickletools
from typing import IO, NamedTuple

_MAX_OPCODES = 500_000  # A tensor with its modules has about 100.
_MAX_LINE = 1000  # bytes of a name or a number in text
_MAX_INTEGER = 16  # bytes
_MAX_DIGITS = 40
_REFUSED = {'EXT1', 'EXT2', 'EXT4', 'NEXT_BUFFER', 'READONLY_BUFFER'}
_PUTS = 'PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'
_GETS = 'GET', 'BINGET', 'LONG_BINGET'
# Bytes of the length before an argument, by pickletools' number.
_LENGTHS = {-2: 1, -3: 4, -4: 4, -5: 8}
# What a value on the stack is. Only a _KEY, a number or a text, or a _NAME, a
# class, may be the key of a dict or the member of a set. All weights have such
# keys (Lightning's callbacks have classes), and neither the hashes of numbers
# of 64 bits and of classes nor Python's random hashes of texts collide.
_KEY, _NAME, _OTHER, _MARK = 'key', 'name', 'other', 'mark'
_KEYS = {'int', 'int_or_bool', 'bool', 'None', 'float', 'str', 'bytes',
         'bytes_or_str'}


class _Opcode(NamedTuple):
  """What an opcode reads, takes from the stack and puts on it.

  Attributes:
    name: of the opcode.
    size: bytes of its argument; negative as pickletools has it: -1 for a line,
      else a key of _LENGTHS.
    below: values that it takes from below its mark, or in all.
    marked: whether it takes all values above a mark.
    puts: kinds of the values that it puts on the stack.
    plain: whether it only puts values, and has no argument or one of a fixed
      size: most opcodes of a file.
  """
  name: str
  size: int
  below: int
  marked: bool
  puts: tuple[str, ...]
  plain: bool


def _opcode(op: pickletools.OpcodeInfo) -> _Opcode:
  before = [kind.name for kind in op.stack_before]
  marked = 'mark' in before
  puts = tuple(_KEY if kind.name in _KEYS else _OTHER
               for kind in op.stack_after)
  if op.name in ('GLOBAL', 'STACK_GLOBAL'):
    puts = (_NAME,)
  size = op.arg.n if op.arg else 0
  plain = not before and size >= 0 and op.name not in (
      *_PUTS, *_GETS, 'MARK', 'FRAME', 'STOP')
  return _Opcode(op.name, size, before.index('mark') if marked else len(before),
                 marked, puts, plain)


_OPCODES = {ord(op.code): _opcode(op) for op in pickletools.opcodes
            if op.name not in _REFUSED}


def check(file: IO[bytes]) -> None:
  """Checks the pickle at a file's position, which stays where it is.

  Args:
    file: of the disk, or io.BytesIO.

  Raises:
    pickle.UnpicklingError: it is cut off or damaged, has more opcodes than
      any network, memo indices beyond the number of its opcodes, integers of
      over 16 bytes, or keys that are neither numbers nor texts.
  """
  at = file.tell()
  if isinstance(file, io.BytesIO):
    _check(file.getvalue(), at)
  elif os.fstat(file.fileno()).st_size:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
      _check(content, at)
  else:
    raise _refused('it is cut off')


def _check(content: bytes | mmap.mmap, at: int) -> None:
  """Checks the pickle at a place of the content."""
  stack, memo, end = [], {}, len(content)
  for count in range(_MAX_OPCODES):
    if at >= end:
      raise _refused('it is cut off')
    op = _OPCODES.get(content[at])
    if op is None:
      raise _refused(f'it has the opcode {content[at:at + 1]!r}')
    at += 1
    if op.plain:
      at += op.size
      stack += op.puts
      continue
    if op.name == 'STOP':
      return
    argument, at = _argument(content, at, op)
    _apply(op, argument, stack, memo, count)
  raise _refused(f'it has more than {_MAX_OPCODES:,} opcodes')


def _argument(content: bytes | mmap.mmap, at: int, op: _Opcode
              ) -> tuple[bytes, int]:
  """(argument of an opcode, of a long one its first bytes; the place after)."""
  size = op.size
  if not size:
    return b'', at
  if size == -1:
    return _lines(content, at, op)
  if size < 0:
    start = at + _LENGTHS[size]
    size, at = int.from_bytes(content[at:start], 'little'), start
  if size > len(content) - at:
    raise _refused('it is cut off')
  argument = content[at:at + min(size, _MAX_INTEGER + 1)]
  at += size
  # A frame is read at once.
  if op.name == 'FRAME' and int.from_bytes(argument, 'little') > (
      len(content) - at):
    raise _refused('it is cut off')
  return argument, at


def _lines(content, at, op):
  """The first line of an argument in text, and the place after it."""
  first = b''
  for i in range(2 if op.name in ('GLOBAL', 'INST') else 1):
    stop = content.find(b'\n', at)
    if stop < 0:
      raise _refused('it is cut off')
    # Texts may be of any length.
    if op.name not in ('STRING', 'UNICODE') and stop - at >= _MAX_LINE:
      raise _refused(f'a line of {op.name} has over {_MAX_LINE} bytes')
    if not i:
      first = content[at:min(stop, at + _MAX_LINE)]
    at = stop + 1
  return first, at


def _apply(op: _Opcode, argument: bytes, stack: list[str], memo: dict[int, str],
           count: int) -> None:
  """Applies opcode number `count` to the kinds on the stack and in the memo."""
  name = op.name
  if name in _PUTS:
    index = len(memo) if name == 'MEMOIZE' else _index(name, argument)
    if index > count:  # The memo is a table with as many rows.
      raise _refused(f'it has the memo index {index}')
    memo[index] = _top(stack)
  elif name in _GETS:
    index = _index(name, argument)
    if index not in memo:
      raise _refused(f'nothing has the memo index {index}')
    stack.append(memo[index])
  elif name == 'MARK':
    stack.append(_MARK)
  elif name == 'DUP':
    stack.append(_top(stack))
  elif name == 'POP' and stack and stack[-1] == _MARK:
    stack.pop()
  else:
    _check_taken(name, *_take(op, stack))
    stack += op.puts
    if name in ('LONG1', 'LONG4', 'INT', 'LONG'):
      stack[-1] = _kind_of_integer(op, argument)


def _index(name, argument):
  """The memo index in an argument."""
  if name not in ('PUT', 'GET'):
    return int.from_bytes(argument, 'little')
  if not argument.isdigit() or len(argument) > _MAX_DIGITS:
    raise _refused('a memo index is not a number')
  return int(argument)


def _top(stack):
  if not stack or stack[-1] == _MARK:
    raise _refused('an opcode has no value')
  return stack[-1]


def _take(op: _Opcode, stack: list[str]) -> tuple[list[str], list[str]]:
  """Takes an opcode's values: (those below its mark, those above)."""
  above = []
  if op.marked:
    while not stack or stack[-1] != _MARK:
      if not stack:
        raise _refused('a mark is missing')
      above.append(stack.pop())
    stack.pop()
  below = stack[len(stack) - op.below:] if op.below else []
  if len(below) < op.below or _MARK in below:
    raise _refused('an opcode has no value')
  del stack[len(stack) - op.below:]
  return below, above[::-1]


def _check_taken(name, below, above):
  """Raises where an opcode takes what it may not."""
  if name == 'SETITEM':
    keys = below[1:2]
  elif name in ('SETITEMS', 'DICT'):
    keys = above[::2]
  else:
    keys = above if name in ('ADDITEMS', 'FROZENSET') else ()
  if any(kind not in (_KEY, _NAME) for kind in keys):
    raise _refused('a key is neither a number nor a text')
  if name == 'BUILD' and below[0] == _NAME:
    raise _refused('it changes a class or a function')


def _kind_of_integer(op, argument):
  """The kind of an integer; of over 64 bits, as PyTorch's magic number, no key.
  """
  in_text = op.size == -1
  if len(argument) > (_MAX_DIGITS if in_text else _MAX_INTEGER):
    raise _refused(f'an integer has over {_MAX_INTEGER} bytes')
  return _KEY if len(argument) <= (20 if in_text else 8) else _OTHER


def _refused(reason):
  return pickle.UnpicklingError(reason)
