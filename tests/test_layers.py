"""The layout: imports go one way, files stay short, the library stays quiet."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path
    for package in ("ntk_privacy", "experiments")
    for path in (ROOT / package).rglob("*.py")
)
MAX_LINES = 450
MAX_LINES_OF_BINARIES = 150
LONGER = ("_flags", "_run")
MAX_LINES_OF_ALL_BINARIES = 3000

# From the bottom up; what shares a line never imports its neighbours.
LAYERS = (
    ("data",),
    ("models",),
    ("kernels",),
    ("training",),
    ("curvature", "reconstruction", "evasion"),
    # RKIP-finite is an attack by its definition; DM poisoning borrows DM's features.
    ("distillation",),
    ("poisoning",),
    ("evaluation",),
    ("auditing",),
    ("reports",),
    ("studies",),
    ("experiments",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Other names of distillation and its modules.
RANK |= dict.fromkeys(("condensation", "kip", "rkip"), RANK["distillation"])
# Below everything: they import nothing of the package but one another.
BASE = {
    *("_types", "_checks", "_class_checks", "_tree", "_linalg", "_programs"),
    *("_platform", "_version", "_versions"),
    *("_loop", "_files", "_archives", "checkpoint", "method", "resume", "sharding"),
    *("_thumbnails", "hosts", "compilation_cache", "_public", "_former_names"),
}
WRITERS = (
    "data/fetch.py",
    "checkpoint.py",
    "compilation_cache.py",
    "models/saved.py",
    "reports/",
    "training/trajectories.py",
)
_TYPES = "TYPE_CHECKING"
_RE_EXPORTS = (
    *("__all__", "__version__", "METHODS = by_name("),
    *("__dir__ = _public.names(", "__getattr__ = _public.found_when_asked("),
)
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def _layer(module: str) -> str | None:
    """Returns the layer of a dotted name, "" for the package, None if foreign."""
    parts = module.split(".")
    if parts[0] == "experiments":
        return "experiments"
    if parts[0] != "ntk_privacy":
        return None
    return parts[1] if len(parts) > 1 else ""


def _imports(source: str, module: str) -> set[str]:
    """Returns the dotted names that a module imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *base.split(".")])
            base = base.strip(".")
            if base == "ntk_privacy":
                found |= {f"{base}.{alias.name}" for alias in node.names}
            else:
                found.add(base)
    return found


def wrong_imports(source: str, module: str) -> list[str]:
    """Returns what a module imports against the direction of the layers."""
    own = _layer(module)
    if own == "":  # ntk_privacy/__init__.py collects the public names
        return [
            name for name in _imports(source, module) if _layer(name) == "experiments"
        ]
    wrong = []
    for name in sorted(_imports(source, module)):
        other = _layer(name)
        if other is None or other == own or other in BASE:
            continue
        if other == "":
            allowed = own == "experiments"
        elif own in BASE:
            allowed = False
        else:
            allowed = RANK[other] < RANK[own]
        if not allowed:
            wrong.append(f"{module} imports {name}")
    return wrong


def _called(node: ast.Call) -> tuple[str, str]:
    """Returns the object and the name that are called: np.save is ("np", "save")."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return (owner.id if isinstance(owner, ast.Name) else "?"), node.func.attr
    return "", node.func.id if isinstance(node.func, ast.Name) else "?"


def noisy_calls(source: str) -> list[str]:
    """Returns calls that print, or that open or write a file for writing."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner, name = _called(node)
        values = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
        modes = [v.value for v in values if isinstance(v, ast.Constant)]
        opens = name == "open" and any(
            isinstance(mode, str) and len(mode) < 4 and set(mode) & set("wax+")
            for mode in modes
        )
        saves = name in {"write_text", "write_bytes", "savefig", "tofile", "savetxt"}
        saves |= owner in {"np", "jnp", "numpy"} and name.startswith("save")
        saves |= owner == "json" and name == "dump"
        if opens or saves or (owner, name) == ("", "print"):
            wrong.append(f"line {node.lineno}: {name}")
    return wrong


def pickling(source: str, module: str) -> list[str]:
    """Returns imports of picklers and permissions to unpickle."""
    wrong = [n for n in _imports(source, module) if n.split(".")[0] in PICKLERS]
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.keyword) and node.arg == "allow_pickle"):
            continue
        if not (isinstance(node.value, ast.Constant) and node.value.value is False):
            wrong.append(f"line {node.value.lineno}: allow_pickle")
    return wrong


def calls_of_locals(source: str) -> list[str]:
    """Returns calls of `locals()`: what it passes on, no checker sees."""
    return [
        f"line {node.lineno}: locals"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and _called(node) == ("", "locals")
    ]


def untyped_configs(source: str) -> list[str]:
    """Returns parameters named config that are annotated Any or not at all."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.arguments):
            continue
        named = [*node.posonlyargs, *node.args, *node.kwonlyargs, node.vararg]
        for each in [*named, node.kwarg]:
            if each is None or each.arg != "config":
                continue
            told = "" if each.annotation is None else ast.unparse(each.annotation)
            if told.strip("\"'") in ("", "Any", "typing.Any"):
                wrong.append(f"line {each.lineno}: config: {told or 'nothing'}")
    return wrong


def _module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def _name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_tree_is_found_and_every_package_has_a_layer():
    assert len(FILES) > 20
    layers = {_layer(_module(path)) for path in FILES} - {"", "__main__"}
    assert layers <= set(RANK) | BASE, "a new package needs its place in LAYERS"


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_imports_go_one_way(path):
    assert wrong_imports(path.read_text(), _module(path)) == []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_files_stay_short_and_unpickled(path):
    lines = len(path.read_text().splitlines())
    binary = _module(path).startswith("experiments") and path.stem not in LONGER
    limit = MAX_LINES_OF_BINARIES if binary else MAX_LINES
    assert lines <= limit, f"{lines} lines: split the file by what it does"
    assert path.stem != "utils"
    assert pickling(path.read_text(), _module(path)) == []


def test_binaries_are_thin():
    binaries = [path for path in FILES if path.is_relative_to(ROOT / "experiments")]
    lines = sum(len(path.read_text().splitlines()) for path in binaries)
    told = "what knows nothing of flags belongs into ntk_privacy"
    assert 0 < lines <= MAX_LINES_OF_ALL_BINARIES, f"{lines} lines: {told}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.is_relative_to(ROOT / "ntk_privacy")], ids=_name
)
def test_the_library_neither_prints_nor_writes_files(path):
    inside = path.relative_to(ROOT / "ntk_privacy").as_posix()
    wrong = noisy_calls(path.read_text())
    if inside.startswith(WRITERS):
        wrong = [call for call in wrong if call.endswith(": print")]
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_arguments_are_named_and_configs_typed(path):
    assert calls_of_locals(path.read_text()) == []
    assert untyped_configs(path.read_text()) == []


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_package_files_only_re_export(path):
    if path.name != "__init__.py":
        return
    body = ast.parse(path.read_text()).body
    lazy = [n for n in body if isinstance(n, ast.If) and ast.unparse(n.test) == _TYPES]
    for node in [n for n in body if n not in lazy] + [n for i in lazy for n in i.body]:
        text = ast.unparse(node)
        assert isinstance(
            node, ast.Import | ast.ImportFrom | ast.Expr
        ) or text.startswith(_RE_EXPORTS), (
            f"{_name(path)} does more than re-export: {text[:60]}"
        )


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("ntk_privacy.models.mlp", "from ntk_privacy import kernels", 1),
        ("ntk_privacy.models.mlp", "from ntk_privacy.kernels import empirical", 1),
        (
            "ntk_privacy.models.mlp",
            "def f():\n    import ntk_privacy.training.train",
            1,
        ),
        ("ntk_privacy.models.mlp", "from ..kernels import empirical", 1),
        ("ntk_privacy.models.mlp", "from . import convnet\nimport jax", 0),
        ("ntk_privacy.models.mlp", "from ntk_privacy import _checks, data", 0),
        ("ntk_privacy.models.mlp", "import ntk_privacy", 1),
        (
            "ntk_privacy.curvature.x",
            "from ntk_privacy import reconstruction, evasion",
            2,
        ),
        ("ntk_privacy._loop", "from ntk_privacy import _checks, data", 1),
        ("ntk_privacy.reports.plots", "import experiments.train", 1),
        ("ntk_privacy", "from ntk_privacy import kip\nimport experiments", 1),
        ("experiments.train", "import ntk_privacy\nfrom ntk_privacy import kip", 0),
    ],
)
def test_the_import_check_can_fail(module, source, count):
    assert len(wrong_imports(source, module)) == count


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("print(1)", 1),
        ("open(p, 'w')", 1),
        ("p.open(mode='rb+')", 1),
        ("p.open('rb')", 0),
        ("open('wax')", 1),  # harsh on a short file name, never blind to a mode
        ("p.write_text('x'); np.savez(p); json.dump(x, f)", 3),
        ("manager.save(1); jnp.sum(x)", 0),
    ],
)
def test_the_quietness_check_can_fail(source, count):
    assert len(noisy_calls(source)) == count


def test_the_pickle_check_can_fail():
    assert pickling("import pickle\nnp.load(p, allow_pickle=True)", "experiments.x")
    assert pickling("np.load(p, allow_pickle=False)", "experiments.x") == []


def test_the_check_of_locals_can_fail():
    assert len(calls_of_locals("def f(a):\n    return g(**dict(locals()))")) == 1
    assert calls_of_locals("model.locals(); locals; f('locals()')") == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(config): ...", 1),
        ("def f(x, *, config: Any = None): ...", 1),
        ("class A:\n    async def f(self, config: 'typing.Any', /): ...", 1),
        ("g = lambda config: 1", 1),
        ("def f(**config): ...", 1),
        ("def f(config: Config, options): ...", 0),
        ("def f(config: object): ...", 0),
        ("config = f(config=1)", 0),
    ],
)
def test_the_check_of_configs_can_fail(source, count):
    assert len(untyped_configs(source)) == count
