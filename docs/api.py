"""Writes docs/api.md, the API reference, from signatures and docstrings.

python -m docs.api
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import ggcf_jax

PAGE = pathlib.Path(__file__).with_suffix('.md')

_WIDTH = 96  # of a signature, in characters

_INTRODUCTION = """\
# API reference

The public functions and classes, by what they are for; what is not here may change without notice.
Shapes are those of [jaxtyping](https://docs.kidger.site/jaxtyping/):
`Float[Array, 'b h w #heads dv']` is an array of floating point numbers with five axes, of which
`heads` may also be 1. `InputError` is what the user can cure; its message says how
([troubleshooting.md](troubleshooting.md)).

`import ggcf_jax` alone gives {top_level}.
Everything else is imported from the module in its heading.

This page is made from the docstrings by `python -m docs.api`.
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """Part of the page.

    Attributes:
        title: heading.
        text: Markdown below it.
        names: names to show, as `module:name` or, with some of the methods of a class only,
            `module:name.method,method`; no method for `module:name.`.
    """

    title: str
    text: str
    names: tuple[str, ...]


SECTIONS = (
    Section(
        'Attention',
        '[attention.md](attention.md) is the page to read first.',
        (
            'ggcf_jax.attention:attend',
            'ggcf_jax.attention:attend_across',
            'ggcf_jax.attention:merge',
            'ggcf_jax.attention:attention_weights',
            'ggcf_jax.attention:neighbor_mask',
            'ggcf_jax.attention:parse',
            'ggcf_jax.attention:resolve_implementation',
            'ggcf_jax.attention:Resolution.',
            'ggcf_jax.attention:Partial',
            'ggcf_jax.attention:Registers',
            'ggcf_jax.attention:Full.',
            'ggcf_jax.attention:Local.',
            'ggcf_jax.attention:Grid.',
            'ggcf_jax.attention:Row.',
            'ggcf_jax.attention:Column.',
            'ggcf_jax.attention:Cross.',
            'ggcf_jax.attention:Block.',
            'ggcf_jax.attention:Union.',
            'ggcf_jax.attention:Intersection.',
            'ggcf_jax.attention:simplify',
            'ggcf_jax.attention:Learned.init,bind',
        ),
    ),
    Section(
        'Trained models',
        'The [tutorial](tutorial.md) trains one and uses it.',
        (
            'ggcf_jax:load',
            'ggcf_jax.workdir.model:TrainedModel.'
            'predict,probabilities,attention,evaluate,network,run',
            'ggcf_jax.evaluation.results:Evaluation.scores,iou,miou,pixel_accuracy,category_iou',
        ),
    ),
    Section(
        'Configuration and training',
        'The functions behind the modes of `main.py`.',
        (
            'ggcf_jax.config:default',
            'ggcf_jax.config:check',
            'ggcf_jax.doctor:examine',
            'ggcf_jax.train:train_and_evaluate',
            'ggcf_jax.evaluate:evaluate_workdir',
            'ggcf_jax.predict:predict',
            'ggcf_jax.export:export_workdir',
            'ggcf_jax.export:export_onnx',
            'ggcf_jax.export:export_folder',
            'ggcf_jax.export:export_backbone',
            'ggcf_jax.errors:InputError.',
        ),
    ),
    Section(
        'Contracts',
        'What code of your own fulfils. All but graphs are protocols: nothing has to be\n'
        'inherited. The configuration names such code as `my_package.my_module:attribute`, in\n'
        'the field given here; [CONTRIBUTING.md](../CONTRIBUTING.md) is about code in this\n'
        'repository.\n'
        '\n'
        '| what | field | contract |\n'
        '|---|---|---|\n'
        '| graph | `model.heads` | a subclass of `OffsetGraph`, `SeparableGraph` or `Graph` |\n'
        '| backbone | `model.backbone.name` | `BackboneBuilder` |\n'
        '| context module | `model.context` | `ContextBuilder` |\n'
        '| data set | `data.name` | `DatasetBuilder` |\n'
        '| metric | `eval.metrics` | a function of the confusion matrix, below |\n'
        '| loss | `train.loss` | `LossBuilder` |\n'
        '| optimiser | `train.optimizer` | `OptimizerBuilder` |\n'
        '| schedule of the learning rate | `train.schedule` | `ScheduleBuilder` |',
        (
            'ggcf_jax.attention:OffsetGraph.edges',
            'ggcf_jax.attention:SeparableGraph.axis_edges',
            'ggcf_jax.attention:Graph.adjacency,within,degrees,num_edges,max_degree,init,bind',
            'ggcf_jax.attention:Frame.',
            'ggcf_jax.models.backbones:BackboneBuilder',
            'ggcf_jax.models.backbones:Backbone',
            'ggcf_jax.models.contexts:ContextBuilder',
            'ggcf_jax.models.contexts:Context',
            'ggcf_jax.models.contexts:AttentionContext',
            'ggcf_jax.models.contexts:PrunedContext',
            'ggcf_jax.data.records.dataset:DatasetBuilder',
            'ggcf_jax.data.records.dataset:Dataset.',
            'ggcf_jax.data.records.dataset:RecordSource',
            'ggcf_jax.data.records.dataset:Decoder',
            'ggcf_jax.evaluation.metrics:Metric',
            'ggcf_jax.training.losses:LossBuilder',
            'ggcf_jax.training.losses:Loss',
            'ggcf_jax.training.optimizers:OptimizerBuilder',
            'ggcf_jax.training.schedules:ScheduleBuilder',
        ),
    ),
)


def page() -> str:
    """Returns the page."""
    top_level = ', '.join(f'`{name}`' for name in ggcf_jax.__all__ if name != '__version__')
    parts = [_INTRODUCTION.format(top_level=top_level)]
    for section in SECTIONS:
        parts.append(f'## {section.title}\n\n{section.text}\n')
        for name in section.names:
            parts += _entry(name)
    return '\n'.join(parts)


def _entry(name: str) -> Iterator[str]:
    """Yields the Markdown of one name."""
    module_name, _, path = name.partition(':')
    path, dot, members = path.partition('.')
    module = importlib.import_module(module_name)
    value = getattr(module, path)
    yield f'### `{module_name}.{path}`\n'
    if not (inspect.isclass(value) or inspect.isfunction(value)):  # an alias of a type
        yield from _alias(module, path)
        return
    if inspect.isfunction(value):
        yield from _function(value, path)
        return
    if _is_constructed(value):
        yield _indented(_constructor(value))
    yield from _docstring(value)
    for method in [m for m in members.split(',') if m] if dot else _own_methods(value):
        yield f'#### `{path}.{method}`\n'
        yield from _method(inspect.getattr_static(value, method), method)


def _method(member: Any, name: str) -> Iterator[str]:
    if not isinstance(member, property | functools.cached_property):
        yield from _function(member, name)
        return
    function = member.fget if isinstance(member, property) else member.func
    yield _indented(f'{name}: {ast.unparse(_node(function).returns)}')
    yield from _docstring(function)


def _function(function: Callable, name: str) -> Iterator[str]:
    yield _indented(_signature(_node(function), name))
    yield from _docstring(function)


def _alias(module: ModuleType, name: str) -> Iterator[str]:
    """The definition of an alias, and what the docstring of its module says."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            yield _indented(ast.unparse(node))
    yield from _docstring(module)


def _own_methods(cls: type) -> list[str]:
    """The documented methods in the source of a class: not those that a named tuple is given."""
    source = inspect.getsourcefile(cls)
    return [
        name
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and member.__doc__
        if name not in ('__init__', '__post_init__') and inspect.getsourcefile(member) == source
    ]


def _is_constructed(cls: type) -> bool:
    """Whether users call the class: not contracts, exceptions and what functions return."""
    contract = getattr(cls, '_is_protocol', False) or inspect.isabstract(cls)
    returned = cls.__name__ in ('TrainedModel', 'Evaluation')
    return not (contract or returned or issubclass(cls, Exception))


def _constructor(cls: type) -> str:
    """The constructor of a dataclass as a signature."""
    annotations = {
        node.target.id: ast.unparse(node.annotation)
        for node in _node(cls).body
        if isinstance(node, ast.AnnAssign)
    }
    arguments = []
    parameters = list(inspect.signature(cls).parameters.values())
    if parameters and parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        arguments.append('*')
    for parameter in parameters:
        default = '' if parameter.default is parameter.empty else f' = {parameter.default!r}'
        arguments.append(f'{parameter.name}: {annotations[parameter.name]}{default}')
    return _call(cls.__name__, arguments, '')


def _signature(node: ast.FunctionDef, name: str) -> str:
    """The signature as it is written in the source, without self."""
    a = node.args
    arguments, positional = [], [*a.posonlyargs, *a.args]
    defaults = [None] * (len(positional) - len(a.defaults)) + list(a.defaults)
    for i, (argument, default) in enumerate(zip(positional, defaults)):
        arguments.append(_argument(argument, default))
        if a.posonlyargs and i + 1 == len(a.posonlyargs):
            arguments.append('/')
    if a.vararg:
        arguments.append(f'*{_argument(a.vararg, None)}')
    elif a.kwonlyargs:
        arguments.append('*')
    arguments += [_argument(*pair) for pair in zip(a.kwonlyargs, a.kw_defaults)]
    arguments = [text for text in arguments if text not in ('self', 'cls')]
    returns = f' -> {ast.unparse(node.returns)}' if node.returns else ''
    return _call(name, arguments, returns)


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    if argument.annotation is None:
        return argument.arg
    text = f'{argument.arg}: {ast.unparse(argument.annotation)}'
    return text if default is None else f'{text} = {ast.unparse(default)}'


def _call(name: str, arguments: Iterable[str], returns: str) -> str:
    arguments = list(arguments)
    line = f'{name}({", ".join(arguments)}){returns}'
    if len(line) <= _WIDTH:
        return line
    return '\n'.join([f'{name}(', *(f'    {text},' for text in arguments), f'){returns}'])


def _node(value: Any) -> Any:
    """The syntax tree of a function or class."""
    return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]


def _docstring(value: Any) -> Iterator[str]:
    """Yields the docstring as Markdown: paragraphs, then lists of arguments and the like."""
    # Markdown would take h*w x h*w for emphasis.
    text = re.sub(r'(?<=\w)\*(?=\w)', r'\\*', inspect.cleandoc(value.__doc__ or ''))
    head, *rest = re.split(r'^(Args|Attributes|Returns|Raises):\n', text, flags=re.M)
    yield f'{head.rstrip()}\n'
    for title, body in zip(rest[::2], rest[1::2]):
        items = _items(inspect.cleandoc('\n' + body))
        if title == 'Returns':
            yield f'Returns: {" ".join(body.split())}\n'
        elif title == 'Raises':
            yield '\n\n'.join(f'Raises `{name}`: {text}' for name, text in items) + '\n'
        else:
            yield '\n'.join(f'- `{name}`: {text}' for name, text in items) + '\n'


def _items(body: str) -> list[tuple[str, str]]:
    """'name: text' with continuation lines -> (name, text)."""
    items = re.findall(r'^(\S[^:\n]*): ((?:.*\n?)(?:[ \n].*\n?)*)', body, flags=re.M)
    return [(name, ' '.join(text.split())) for name, text in items]


def _indented(text: str) -> str:
    return textwrap.indent(text, '    ') + '\n'


if __name__ == '__main__':
    PAGE.write_text(page(), encoding='utf-8')
