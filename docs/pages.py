"""Pages that are made, not written: the reference, and copies of the notebooks."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import shutil
from collections.abc import Iterator, Mapping
from types import ModuleType

from docutils import nodes
from latex2mathml import converter

import ntk_privacy
from ntk_privacy.method import Method

PACKAGES = (
    "auditing",
    "reconstruction",
    "distillation",
    "evasion",
    "poisoning",
    "evaluation",
    "curvature",
    "training",
    "kernels",
    "models",
    "data",
    "reports",
    "studies",
)


def _public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def modules_of(package: ModuleType) -> list[ModuleType]:
    """Returns the public modules of a package, by name; those that need nothing more.

    Args:
      package: imported.
    """
    found = []
    for entry in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not _public(entry.name):
            continue
        if entry.name.endswith("kernels.neural_tangents"):
            # Patches another library as it is imported; its docstring is on the page.
            continue
        found.append(importlib.import_module(entry.name))
    return found


def first_sentence(text: str | None) -> str:
    """Returns the first paragraph of a docstring, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _tables(package: ModuleType) -> Iterator[str]:
    for name in ("METHODS", "SETS", "JUDGES"):
        rows = getattr(package, name, None)
        if not isinstance(rows, Mapping):
            continue
        rows = {k: v for k, v in rows.items() if isinstance(v, Method)}
        if rows:
            yield f"\n## {name}\n"
            yield "| name | what it does | presets |\n| --- | --- | --- |"
            for key, row in rows.items():
                yield f"| `{key}` | {row.about} | {', '.join(row.presets)} |"


def _module_page(module: ModuleType) -> str:
    short = module.__name__.removeprefix("ntk_privacy.")
    title = f"{short}\n{'=' * len(short)}\n\n.. automodule:: {module.__name__}\n"
    guests = [
        name
        for name in getattr(module, "__all__", ())
        if getattr(getattr(module, name), "__module__", module.__name__)
        != module.__name__
    ]
    # What lives elsewhere is told there.
    return title + (f"   :exclude-members: {', '.join(guests)}\n" if guests else "")


def _package_page(package: ModuleType, modules: list[ModuleType]) -> str:
    short = package.__name__.removeprefix("ntk_privacy.")
    doc = markdown(inspect.getdoc(package) or "")
    lines = [f"# {short}", "", doc, *_tables(package), "", "## Modules", ""]
    lines += ["| module | what it has |", "| --- | --- |"]
    for module in modules:
        name = module.__name__.removeprefix("ntk_privacy.")
        told = first_sentence(markdown(module.__doc__ or "")).replace("|", r"\|")
        lines.append(f"| [{name.rpartition('.')[2]}]({name}.rst) | {told} |")
    listed = "\n".join(m.__name__.removeprefix("ntk_privacy.") for m in modules)
    lines += ["", "```{toctree}", ":hidden:", "", listed, "```", ""]
    return "\n".join(lines)


_FROM = re.compile(r"<!-- from ([^;]+); (.*?)(?:; derived: [^;]*?)? -->", re.S)


def told_sources(text: str) -> str:
    """Returns a page that shows the marks of its prose: stored files and commands.

    Args:
      text: Markdown; see `benchmarks.tables._prose`.
    """

    def shown(match: re.Match[str]) -> str:
        files = ", ".join(f"`{name}`" for name in match[1].split())
        return f'<small class="from">From {files}: `{match[2]}`</small>'

    return _FROM.sub(shown, text)


def tell_sources(app: object, name: str, source: list[str]) -> None:
    """Lets a page show where the figures of its prose are from: see `told_sources`.

    Args:
      app: Sphinx.
      name: of the page.
      source: its text, in a list of one, which is changed.
    """
    del app
    if name != "add_benchmark":  # There they are examples.
        source[0] = told_sources(source[0])


def write_reference(folder: pathlib.Path) -> None:
    """Writes a page for every package, and one for every public module.

    Args:
      folder: gets them, beside its index; what was there before and is made goes.
    """
    made = {}
    tops = []
    for name in PACKAGES:
        package = importlib.import_module(f"ntk_privacy.{name}")
        modules = modules_of(package)
        made[f"{name}.md"] = _package_page(package, modules)
        made |= {
            m.__name__.removeprefix("ntk_privacy.") + ".rst": _module_page(m)
            for m in modules
        }
    for entry in pkgutil.iter_modules(ntk_privacy.__path__, "ntk_privacy."):
        if _public(entry.name) and not entry.ispkg:
            module = importlib.import_module(entry.name)
            tops.append(module)
            name = module.__name__.removeprefix("ntk_privacy.")
            made[f"{name}.rst"] = _module_page(module)
    made["index.md"] = _index(tops)
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        path = folder / name
        # A page that is as it was is not read again.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _index(tops: list[ModuleType]) -> str:
    lines = ["# Reference", ""]
    lines += ["Every public module: shapes, units, errors and sources."]
    lines += ["", "| package | what it has |", "| --- | --- |"]
    for name in PACKAGES:
        package = importlib.import_module(f"ntk_privacy.{name}")
        told = first_sentence(markdown(package.__doc__ or "")).replace("|", r"\|")
        lines.append(f"| [ntk_privacy.{name}]({name}.md) | {told} |")
    for module in tops:
        name = module.__name__.removeprefix("ntk_privacy.")
        told = first_sentence(markdown(module.__doc__ or "")).replace("|", r"\|")
        lines.append(f"| [ntk_privacy.{name}]({name}.rst) | {told} |")
    names = [*PACKAGES, *(m.__name__.removeprefix("ntk_privacy.") for m in tops)]
    lines += ["", "```{toctree}", ":hidden:", "", *names, "```", ""]
    return "\n".join(lines)


def copy_notebooks(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies notebooks to where Sphinx looks for pages.

    Args:
      source: folder with the notebooks.
      target: gets copies; others that lie there go.
    """
    target.mkdir(exist_ok=True)
    names = {path.name for path in source.glob("*.ipynb")}
    for path in target.iterdir():
        if path.name not in names:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    for name in names:
        copy = target / name
        if not copy.exists() or copy.read_bytes() != (source / name).read_bytes():
            shutil.copyfile(source / name, copy)


def markdown(text: str) -> str:
    """Returns a docstring's prose, which is Markdown, without its sections."""
    return re.split(r"\n(?:Args|Example|Raises|Returns|Attributes):\n", text)[0].strip()


def as_restructured_text(app, what, name, obj, options, lines) -> None:
    """Turns formulas and Markdown of a docstring, in place, into what Sphinx reads."""
    del app, name, options
    if what == "class":
        lines[:] = _with_fields(lines, getattr(obj, "__annotations__", {}))
    text = "\n".join(lines)
    text = re.sub(r"\$\$(.+?)\$\$", _display, text, flags=re.S)
    text = re.sub(r"(?<![\w$])\$([^$\n]+(?:\n[^$\n]+)?)\$(?![\w$])", _inline, text)
    # Norms and sizes, which would be substitutions.
    text = re.sub(r"(?<![\w`|])\|([^|`\n]+)\|(?![\w`|])", r"\\|\1\\|", text)
    # The plural of a name in backquotes.
    text = re.sub(r"(?<![`:])`([^`\n]+)`(?=[a-z])", r"`\1`\\ ", text)
    lines[:] = text.split("\n")


def _with_fields(lines: list[str], fields: Mapping[str, object]) -> list[str]:
    """Returns a docstring whose lines "field: text" are a list."""
    out, inside = [], False
    for line in lines:
        match = re.match(r"(\w+(?:, \w+)*): (.+)", line)
        if match and all(name in fields for name in match[1].split(", ")):
            if not inside and out and out[-1]:
                out.append("")
            inside = True
            out.append(f"- **{match[1]}**: {match[2]}")
        elif inside and line.strip():
            out.append(f"  {line.strip()}")
        else:
            inside = False
            out.append(line)
    return out


def _display(match: re.Match[str]) -> str:
    start = match.string.rfind("\n", 0, match.start()) + 1
    indent = " " * len(match.string[start : match.start()])
    body = " ".join(match[1].split())
    return f"\n{indent}.. math:: {body}\n{indent}"


def _inline(match: re.Match[str]) -> str:
    return f":math:`{' '.join(match[1].split())}`"


def is_plain_field(app, what, name, obj, skip, options) -> bool | None:
    """Skips fields of named tuples: the docstring of the class has told of them."""
    del app, what, options, skip
    if type(obj).__name__ == "_tuplegetter" or name in ("_fields", "_field_defaults"):
        return True
    if getattr(obj, "__module__", "").startswith("matplotlib"):
        return True
    return None


def with_short_names(app, what, name, obj, options, signature, returned):
    """Returns a signature that calls arrays by the names that users know."""
    del app, what, name, obj, options

    def short(text: str | None) -> str | None:
        if text is None:
            return None
        text = re.sub(r"\bjaxlib\._jax\.Array\b|\bjax\.Array\b", "Array", text)
        return re.sub(r"\bndarray\b", "np.ndarray", text.replace("numpy.", ""))

    return short(signature), short(returned)


def inline_formula(self, node) -> None:
    """Writes a formula within a sentence."""
    self.body.append(converter.convert(node.astext()))
    raise nodes.SkipNode


def displayed_formula(self, node) -> None:
    """Writes a formula on a line of its own, with its number."""
    text = node.astext()
    number = re.search(r"\\tag\{([^}]*)\}", text)
    formula = converter.convert(re.sub(r"\\tag\{[^}]*\}", "", text), display="block")
    tag = f'<span class="eqno">({number[1]})</span>' if number else ""
    self.body.append(f'<div class="math-block">{tag}{formula}</div>\n')
    raise nodes.SkipNode
