"""Docstrings of public names: what they tell, and that their examples run."""

import ast
import collections
import doctest
import functools
import importlib
import inspect
import pathlib
import re
import textwrap
import types
import warnings

import jax
import pytest

from ntk_privacy import _versions

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
# Not imported before a test asks: every worker of the suite collects this file.
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in sorted((ROOT / "ntk_privacy").rglob("*.py"))
    if not any(
        part.startswith("_") and part != "__init__.py"
        for part in path.relative_to(ROOT).parts
    )
}
# What lacked them when this was written; fewer are welcome. None is named by the docs,
# and none is what a record of a table leads to.
MOST_WITHOUT_EXAMPLE = 823
MOST_WITHOUT_ARGS = 0
MOST_WITHOUT_RAISES = 0
LEAST_WITH_EXAMPLE = 262

# Tables of records, each where its users find it.
TABLES = {
    "distillation": ("ntk_privacy.distillation", "METHODS"),
    "reconstruction": ("ntk_privacy.reconstruction", "METHODS"),
    "poisoning": ("ntk_privacy.poisoning", "METHODS"),
    "evasion": ("ntk_privacy.evasion", "METHODS"),
    "judges": ("ntk_privacy.evaluation", "JUDGES"),
    "trainings": ("ntk_privacy.evasion.robust_training", "METHODS"),
    "models": ("ntk_privacy.evaluation.attacked_model", "MODELS"),
    "kernels": ("ntk_privacy.kernels.named", "KERNELS"),
    "audits": ("ntk_privacy.auditing", "METHODS"),
    "sets": ("ntk_privacy.data", "SETS"),
}

ELSEWHERE = (
    "reconstruction/test_examples.py",
    "auditing/test_audit_docstrings.py",
    "test_hosts.py",
)

# Seconds each, of compilation mostly: `make test-examples`.
LONG = {
    "auditing.auditor",
    "distillation.dc",
    "distillation.dm",
    "distillation.mtt",
    "evaluation.poisoned_sets",
    "evaluation.set_attacks",
    "evaluation.soft_students",
    "evaluation.students",
    "poisoning.gradient_matching",
}


@functools.cache
def public_names():
    """Functions and classes by module and name, each where it is defined."""
    found = {}
    for module in map(importlib.import_module, FILES):
        names = getattr(module, "__all__", None)
        if names is None:
            names = [name for name in vars(module) if not name.startswith("_")]
        for name in names:
            value = getattr(module, name)
            # Also what is made of one: by `jit`, `cache`, `custom_jvp`.
            if callable(value) and getattr(value, "__module__", "") == module.__name__:
                found[f"{module.__name__}.{name}"] = value
    return found


def functions():
    """Public names that are no classes."""
    return {
        name: value
        for name, value in public_names().items()
        # Nor instances, such as activations.
        if inspect.isroutine(inspect.unwrap(value)) or hasattr(value, "fun")
    }


def _is_module(value):
    return isinstance(value, types.ModuleType)


@functools.cache
def _spellings():
    """What a page may call a public name: by any module that has it, and re-exports."""
    known = {id(value): name for name, value in public_names().items()}
    found = collections.defaultdict(set)

    def tell(dotted, value):
        parts = dotted.split(".")
        for start in range(len(parts) - 1):
            found[".".join(parts[start:])].add(known[id(value)])

    for path in FILES:
        module = importlib.import_module(path)
        for name, value in vars(module).items():
            if name.startswith("_"):
                continue
            if _is_module(value) and value.__name__.startswith("ntk_privacy."):
                for inner, one in vars(value).items():
                    if not inner.startswith("_") and id(one) in known:
                        tell(f"{path}.{name}.{inner}", one)
            elif id(value) in known:
                tell(f"{path}.{name}", value)
    return found


@functools.cache
def _words():
    """Names that a page may give alone, as in `match`: there is one of that name.

    A word that is also an argument of a function means that.
    """
    found = collections.defaultdict(list)
    for name in public_names():
        found[name.rpartition(".")[2]].append(name)
    arguments = {p for f in functions().values() for p in _parameters(f)}
    return {
        word: names[0]
        for word, names in found.items()
        if len(names) == 1 and word not in arguments
    }


def named_by(text):
    """Returns the public names that a text calls, dotted or alone in backticks."""
    found = set()
    for dotted in re.findall(r"(?<![\w./])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", text):
        parts = dotted.split(".")
        for end in range(2, len(parts) + 1):
            found |= _spellings().get(".".join(parts[:end]), set())
    for word in re.findall(r"`([A-Za-z_]\w*)(?:\([^`]*\))?`", text):
        # One word in small letters is too often just that.
        is_name = "_" in word or not word.islower()
        if is_name and word in _words():
            found.add(_words()[word])
    return found


@functools.cache
def _named_by_the_docs():
    return named_by("\n".join(page.read_text() for page in PAGES))


def _has_example(value):
    return ">>>" in (value.__doc__ or "")


def _parameters(function):
    return list(inspect.signature(function).parameters)


def _definition(function):
    """The `def` of a function; None of one that was made otherwise."""
    inner = inspect.unwrap(function)
    while hasattr(inner, "fun"):  # of `custom_jvp`
        inner = inspect.unwrap(inner.fun)
    if not isinstance(inner, types.FunctionType):
        return None
    node = ast.parse(textwrap.dedent(inspect.getsource(inner))).body[0]
    return node if isinstance(node, ast.FunctionDef) else None


def refuses(node):
    """Whether a function itself raises, or hands what it is given to a check."""
    left = list(node.body)
    while left:
        one = left.pop()
        if isinstance(one, ast.Raise) and one.exc is not None:
            return True
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute):
            owner = one.func.value
            of_checks = isinstance(owner, ast.Name) and re.fullmatch(
                "_(class_)?checks", owner.id
            )
            if of_checks and one.func.attr not in ("concrete", "unknown"):
                return True
        if not isinstance(one, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            left += ast.iter_child_nodes(one)
    return False


def _tells(function, section):
    """Whether a docstring has a section, or says where it stands: "Args: see `f`."."""
    told = function.__doc__ or ""
    pattern = rf"\bArgs and Raises: see |\b{section}:"
    return bool(re.search(pattern, told)) or (
        # One whose purpose it is.
        section == "Raises" and bool(re.match(r"Raises \w+", told))
    )


@functools.cache
def _without_args():
    return [
        name
        for name, function in functions().items()
        if _parameters(function) and not _tells(function, "Args")
    ]


@functools.cache
def _without_raises():
    return [
        name
        for name, function in functions().items()
        if (node := _definition(function)) is not None
        and refuses(node)
        and not _tells(function, "Raises")
    ]


def _without_example():
    return [name for name, v in public_names().items() if not _has_example(v)]


@functools.cache
def _records():
    found = {}
    for label, (module, table) in TABLES.items():
        for name, record in getattr(importlib.import_module(module), table).items():
            found[label, name] = record
    return found


def _led_to(record):
    """The functions that a record names, without what binds their arguments."""
    first = getattr(record, "run", None) or record.load_raw
    found, left = [], [first]
    while left:
        one = left.pop()
        if isinstance(one, functools.partial):
            left += [one.func, *filter(callable, one.args)]
        else:
            found.append(one)
    return found


@functools.cache
def _example_sources():
    """What is run, of every docstring of the package that has an example."""
    found = {}
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            told = ast.get_docstring(node) or ""
            if ">>>" in told:
                where = f"{name}.{getattr(node, 'name', '')}"
                parsed = doctest.DocTestParser().get_examples(told)
                found[where] = "".join(example.source for example in parsed)
    return found


def runs(source, label, name):
    """Whether an example runs the record of that name in that table."""
    module, table = TABLES[label]
    parts = module.split(".")
    imports = rf"from {re.escape(module)} import \b.*\b{table}\b"
    is_table = re.search(rf"\b{parts[-1]}\.{table}\[", source) or re.search(
        imports, source
    )
    one = re.search(rf'\b{table}\["{name}"\]', source)
    in_turn = re.search(rf'\bfor name in \([^)]*"{name}"', source) and re.search(
        rf"\b{table}\[name\]", source
    )
    calls = re.search(r"\.(run|load_raw)\(", source)
    return bool(is_table and calls and (one or in_turn))


def test_public_names_are_found_whatever_they_are_made_by():
    names = public_names()
    assert len(names) > 1000
    for name in (
        "models.mlp.MLP",
        "reconstruction.max_margin_loss.relu_and_slope",  # custom_jvp
        "reconstruction.layer_inversion.gates_of",  # jit
        "kernels.neural_tangents.load",  # cached
        "evaluation.reconstruction_curve.evaluate",
    ):
        assert f"ntk_privacy.{name}" in names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("`data.load`", "data.sets.load"),
        ("ntk_privacy.evaluation.match(x)", "evaluation.reconstruction_curve.match"),
        ("`models.MLP`", "models.mlp.MLP"),
        ("`MLP`", "models.mlp.MLP"),
        ("`kernel_equations`", "reconstruction.through_trunk.kernel_equations"),
        ("`method.field(1)`", "method.field"),
    ],
)  # fmt: skip
def test_a_page_names_by_module_by_re_export_and_alone(text, name):
    assert named_by(text) == {f"ntk_privacy.{name}"}


@pytest.mark.parametrize(
    "text", ["load", "`key`", "`kernel_fn`", "a.load.b", "x/data.load"]
)
def test_other_words_name_nothing(text):
    assert named_by(text) == set()


def test_what_the_docs_name_has_an_example():
    named = _named_by_the_docs()
    assert len(named) > 80
    assert sorted(named & set(_without_example())) == []


def test_what_the_docs_name_tells_its_arguments_and_errors():
    named = _named_by_the_docs()
    assert sorted(named & set(_without_args())) == []
    assert sorted(named & set(_without_raises())) == []


@pytest.mark.parametrize("label", list(TABLES))
def test_every_record_of_a_table_has_an_example(label):
    known = {id(value): name for name, value in public_names().items()}
    sources = _example_sources().values()
    without = []
    for (table, name), record in _records().items():
        if table != label:
            continue
        # A record may stand in two tables.
        places = [at for at, other in _records().items() if other is record]
        led = [known[id(f)] for f in _led_to(record) if id(f) in known]
        if not (
            any(_has_example(public_names()[function]) for function in led)
            or any(runs(source, *at) for source in sources for at in places)
        ):
            without.append(name)
        assert not {*led} & {*_without_args(), *_without_raises()}
    assert without == []


@pytest.mark.parametrize(
    ("source", "does"),
    [
        ('row = distillation.METHODS["dm"]\nrow.run(x)', True),
        ("from ntk_privacy.distillation import METHODS\nMETHODS['dm'].run(x)", False),
        ('for name in ("dc", "dm"):\n  distillation.METHODS[name].run(x)', True),
        ('row = poisoning.METHODS["dm"]\nrow.run(x)', False),
        ('row = distillation.METHODS["dm"]\nrow.configured()', False),
        ('row = distillation.METHODS["dm_median"]\nrow.run(x)', False),
    ],
)
def test_what_runs_a_record_is_seen(source, does):
    assert runs(source, "distillation", "dm") is does


def test_every_example_is_found_by_doctest():
    lost = []
    for path in FILES:
        module = importlib.import_module(path)
        tests = doctest.DocTestFinder().find(module)
        found = {test.name for test in tests if test.examples}
        lost += [
            name
            for name, value in public_names().items()
            if name.rpartition(".")[0] == path
            and _has_example(value)
            and name not in found
        ]
    assert lost == []


def test_names_without_an_example_become_fewer():
    without = _without_example()
    assert len(public_names()) - len(without) >= LEAST_WITH_EXAMPLE
    assert len(without) <= MOST_WITHOUT_EXAMPLE, "\n".join(without)


def test_public_functions_tell_their_arguments():
    without = _without_args()
    assert len(without) <= MOST_WITHOUT_ARGS, "\n".join(without)


def test_functions_that_refuse_tell_what():
    without = _without_raises()
    assert len(without) <= MOST_WITHOUT_RAISES, "\n".join(without)


@pytest.mark.parametrize(
    ("body", "does"),
    [
        ("raise ValueError(x)", True),
        ("_checks.positive(x=x)", True),
        ("if x:\n  _class_checks.images(x=x)", True),
        ("try:\n  g()\n except OSError:\n  raise", False),
        ("def g():\n  raise ValueError\n return g", False),
        ("return x", False),
        ("if _checks.concrete(x):\n  return x\n raise ValueError(x)", True),
    ],
)
def test_what_refuses_is_seen(body, does):
    node = ast.parse(f"def f(x):\n {body}").body[0]
    assert refuses(node) is does


def _run_elsewhere():
    """Modules whose examples another test runs."""
    found = set()
    for path in ELSEWHERE:
        for node in ast.walk(ast.parse((ROOT / "tests" / path).read_text())):
            if isinstance(node, ast.ImportFrom):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(FILES)


def _cases():
    elsewhere = _run_elsewhere()
    for name, path in FILES.items():
        short = name.removeprefix("ntk_privacy.")
        if not re.search(r"^ *>>> ", path.read_text(), re.M):
            continue
        if short in LONG:
            yield pytest.param(name, marks=pytest.mark.slow, id=short)
        elif name not in elsewhere:
            yield pytest.param(name, id=short)


@pytest.mark.parametrize("name", list(_cases()))
def test_examples_print_what_they_say(name):
    module = importlib.import_module(name)
    # In haste, the slow ones too: most of their time is the compiler's.
    jax.config.update("jax_disable_most_optimizations", True)
    # As users run them.
    usual = jax.numpy_dtype_promotion("standard")
    with usual, _versions.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        failed, attempted = doctest.testmod(module)
    assert attempted
    assert failed == 0
