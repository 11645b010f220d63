"""Text about a config file: keys, values, comments, what variants change.

The comments are those of the source, of the functions that make the variant.
"""

import ast
import functools
import io
import pathlib
import tokenize
from collections.abc import Mapping
from typing import Any, NamedTuple

from gen3d.choices import check
from gen3d.engine import config_files


def overview() -> str:
  """Returns a line for each of gen3d's configs: name and title."""
  width = max(map(len, config_files.names()))
  return '\n'.join(
      f'  {name:{width}}  {_docstring(config_files.folder() / f"{name}.py")[0]}'
      for name in config_files.names())


def describe(path: str, variant: str = '') -> str:
  """Returns the text about a config file.

  Args:
    path: of the file.
    variant: whose keys are printed; '' for the default one, and then also
      what each of the others changes.

  Raises:
    UserError: there is no such file or variant.
  """
  module = config_files.execute(path)
  default = config_files.default_variant(module)
  variants = list(module.get('VARIANTS', ()))
  if variant:
    check('variant', variants, variant)
  shown = variant or default
  values = flat(config_files.load(path, shown))
  lines = [*_docstring(pathlib.Path(path)), '',
           f'Keys of the variant {shown!r}, for --config.KEY=VALUE:', '']
  notes, printed = comments(pathlib.Path(path), shown), set()
  for key, value in values.items():
    parts = key.split('.')
    for depth in range(1, len(parts) + 1):
      section = '.'.join(parts[:depth])
      if section in notes and section not in printed:
        first, *rest = notes[section]
        title = '' if section == key else f'{section}: '
        lines += [f'  # {line}' for line in (title + first, *rest)]
      printed.add(section)
    lines.append(f'  {key} = {value!r}')
  for other in [] if variant else variants:
    if other != shown:
      lines += ['', f'The variant {other!r} changes:', '',
                *_changes(values, flat(config_files.load(path, other)))]
  return '\n'.join(lines)


def flat(config: Any, prefix: str = '') -> dict[str, Any]:
  """Returns {dotted key: value} of a config, without its sections."""
  values = {}
  for key, value in config.items():
    if hasattr(value, 'items') and len(value):
      values |= flat(value, f'{prefix}{key}.')
    else:
      values[prefix + key] = value.to_dict() if hasattr(
          value, 'to_dict') else value
  return values


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
  lines = [f'  {key} = {value!r}' for key, value in after.items()
           if key not in before or before[key] != value]
  removed = sorted(set(before) - set(after))
  return lines + ([f'  without {", ".join(removed)}'] if removed else [])


def _docstring(path):
  """Lines of a file's docstring."""
  return (ast.get_docstring(ast.parse(path.read_text())) or '').splitlines()


class _Source(NamedTuple):
  """A config file: functions and constants, and comments by line number.

  Attributes:
    functions, constants: {name: node}.
    imports: {name: _Source} of other config files.
    above: {line: lines of the comment above it}.
    beside: {line: comment at its end}.
  """
  functions: dict[str, ast.FunctionDef]
  constants: dict[str, ast.expr]
  imports: dict[str, '_Source']
  above: dict[int, list[str]]
  beside: dict[int, str]


def comments(path: pathlib.Path, variant: str) -> dict[str, list[str]]:
  """Returns {dotted key: lines of its comment} of a variant."""
  source = _read(path)
  made_by = source.functions['get_config']
  table = source.constants.get('VARIANTS')
  if isinstance(table, ast.Dict):
    for key, value in zip(table.keys, table.values, strict=True):
      if isinstance(key, ast.Constant) and key.value == variant:
        if isinstance(value, ast.Name):
          made_by = source.functions.get(value.id, made_by)
        elif isinstance(value, ast.Lambda):
          made_by = value.body
  found = {}
  _Collector(source, found, '').visit(made_by)
  return found


@functools.cache
def _read(path):
  """The _Source of a file."""
  text = path.read_text()
  functions, constants, imports = {}, {}, {}
  for node in ast.parse(text).body:
    if isinstance(node, ast.FunctionDef):
      functions[node.name] = node
    elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
      constants[node.targets[0].id] = node.value
    elif isinstance(node, ast.ImportFrom) and node.module == 'configs':
      imports |= {x.asname or x.name: _read(
          config_files.folder() / f'{x.name}.py') for x in node.names}
  above, beside, block = {}, {}, []
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      comment = token.string.lstrip('# ')
      if token.line[:token.start[1]].strip():
        beside[token.start[0]] = comment
      else:
        block.append(comment)
    elif block and token.type not in (tokenize.NL, tokenize.INDENT,
                                      tokenize.DEDENT):
      above[token.start[0]], block = block, []
  return _Source(functions, constants, imports, above, beside)


class _Collector(ast.NodeVisitor):
  """Collects the comments of the keys that a function sets.

  A comment above a line is that of the line's first key, one at its end that
  of the last. Later settings replace the comments of earlier ones.
  """

  def __init__(self, source: _Source, found: dict[str, list[str]],
               prefix: str):
    self._source, self._found, self._prefix = source, found, prefix
    self._names = {'config': prefix}  # of variables -> prefix of their keys
    self._keys = {}  # line -> [(column, key)]

  def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
    for statement in node.body:
      self.visit(statement)
    for line, keys in self._keys.items():
      if line in self._source.above:
        self._found[min(keys)[1]] = self._source.above[line]
      if line in self._source.beside:
        self._found[max(keys)[1]] = [self._source.beside[line]]

  def visit_Assign(self, node: ast.Assign) -> None:
    pairs = []
    for target in node.targets:
      if isinstance(target, ast.Tuple):
        values = node.value.elts if isinstance(
            node.value, ast.Tuple) else [node.value] * len(target.elts)
        pairs += zip(target.elts, values, strict=False)
      else:
        pairs.append((target, node.value))
    for target, value in pairs:
      path = self._path(target)
      if isinstance(target, ast.Name):
        alias = self._path(value)
        if alias is not None:
          self._names[target.id] = f'{alias}.'
        self._within(value, self._names.get(target.id, self._prefix))
      elif path is not None:
        self._note(target, path)
        self._within(value, f'{path}.')

  def visit_Call(self, node: ast.Call) -> None:
    function, name = node.func, getattr(node.func, 'id', '')
    owner = function.value if isinstance(function, ast.Attribute) else None
    other = self._source.imports.get(getattr(owner, 'id', ''))
    if name in self._source.functions:
      self._enter(self._source, name)
    elif isinstance(function, ast.Attribute) and other:
      self._enter(other, function.attr)
    prefix = self._prefix
    if isinstance(function, ast.Attribute) and function.attr == 'update':
      path = self._path(function.value)
      prefix = f'{path}.' if path else prefix
    for argument in node.args:
      self._within(argument, prefix)

  def visit_Dict(self, node: ast.Dict) -> None:
    for key, value in zip(node.keys, node.values, strict=True):
      if isinstance(key, ast.Constant):
        path = f'{self._prefix}{key.value}'
        self._note(key, path)
        self._within(value, f'{path}.')
      elif key is None:
        self.visit(value)

  def visit_Name(self, node: ast.Name) -> None:
    constant = self._source.constants.get(node.id)
    if isinstance(constant, ast.Dict):
      self.visit(constant)

  def _enter(self, source, name):
    if name in source.functions:
      _Collector(source, self._found, self._prefix).visit(
          source.functions[name])

  def _within(self, node, prefix):
    """Visits a value whose keys begin with `prefix`."""
    before, self._prefix = self._prefix, prefix
    self.visit(node)
    self._prefix = before

  def _note(self, node, path):
    self._keys.setdefault(node.lineno, []).append((node.col_offset, path))

  def _path(self, node):
    """The dotted key of an expression such as config.scene.size, or None."""
    if isinstance(node, ast.Name):
      prefix = self._names.get(node.id)
      return None if prefix is None else prefix.rstrip('.')
    if isinstance(node, ast.Attribute):
      parent = self._path(node.value)
      return None if parent is None else f'{parent}.{node.attr}'.lstrip('.')
    return None
