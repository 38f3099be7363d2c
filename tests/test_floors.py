"""What keeps the house in order: imports go down only, files stay short, everything is annotated and checked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("feature_extraction", "dept_vl")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))

FLOORS = (
    {"feature_extraction"},
    {"dept_vl.types", "dept_vl.settings", "dept_vl.command_line", "dept_vl.memory"},
    {"dept_vl.config", "dept_vl.metrics"},
    {"dept_vl.formats"},
    {"dept_vl.model", "dept_vl.data", "dept_vl.tasks"},
    {
        "dept_vl.training",
        "dept_vl.inference",
        "dept_vl.answer_log",
        "dept_vl.leaderboard",
        "dept_vl.run_folder",
        "dept_vl.own_data",
        "dept_vl.predict",
        "dept_vl.report_picture",
        "dept_vl.integrations",
        "dept_vl.transfer_results",
        "dept_vl.transfer_runs",
        "dept_vl.cost",
        "dept_vl.costs",
        "dept_vl.apart",
        "dept_vl.sweeping",
        "dept_vl.figures_of_paper",
        "dept_vl.serving",
    },
    {
        "dept_vl.extract",
        "dept_vl.import_features",
        "dept_vl.export_features",
        "dept_vl.train",
        "dept_vl.evaluate",
        "dept_vl.validate",
        "dept_vl.easy_vqa",
        "dept_vl.init_dataset",
        "dept_vl.nlvr",
        "dept_vl.report",
        "dept_vl.fetch",
        "dept_vl.pack",
        "dept_vl.transfer",
        "dept_vl.import_official",
        "dept_vl.plan",
        "dept_vl.sweep",
        "dept_vl.figures",
        "dept_vl.serve",
    },
    {"dept_vl", "dept_vl.bench"},  # the front door, which imports a name when it is asked for, and the benchmarks
)
HALL = 5  # the floor whose rooms may use each other, as long as there is no circle
CORE = ("types.py", "model", "data", "training", "inference.py", "tasks/task.py", "tasks/vqa.py")
# Which a first reading leaves out.
BESIDE_THE_CORE = (
    *("model/transfer.py", "model/suitability.py", "model/answer_trie.py", "model/token_offset.py"),
    *("data/shots.py", "data/device.py", "data/resident.py", "training/captured.py"),
)
LONGEST_FILE, LARGEST_CORE = 400, 3_200  # lines of a file in all; lines of code in the core
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:home|root|Users|work|mnt|opt|tmp|var)/|\b[A-Z]:\\")


def name_of(path: Path) -> str:
    """The module of a file."""
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in SOURCES}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(module: str) -> Iterator[str]:
    """Our modules that a module imports anywhere, also inside a function or for types only."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in found]
            yield from (name for name in names if name in MODULES)


def room(module: str) -> str:
    """The entry of FLOORS that a module belongs to."""
    rooms = [name for name in chain(*FLOORS) if module == name or module.startswith(f"{name}.")]
    # A new file directly under dept_vl must be given its place.
    nearest = max(rooms, key=len)
    assert nearest != "dept_vl" or module == "dept_vl", f"{module} has no place in FLOORS"
    return nearest


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines_of_code(path: Path) -> int:
    """Lines that hold more than space, comments and docstrings."""
    documented: set[int] = set()
    for node in ast.walk(TREES[name_of(path)]):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    space = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    with path.open() as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type not in space]
    code = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(code - documented)


def core_files() -> list[Path]:
    paths = [REPOSITORY / "dept_vl" / part for part in CORE]
    beside = {REPOSITORY / "dept_vl" / part for part in BESIDE_THE_CORE}
    files = [file for path in paths for file in (sorted(path.glob("*.py")) if path.is_dir() else [path])]
    return [file for file in files if file not in beside]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    for other in imports(module):
        if room(other) == room(module):
            continue
        neighbours = floor(other) == floor(module)
        assert floor(other) <= floor(module), f"{module} imports {other} from a floor above"
        assert not neighbours or floor(module) == HALL, f"{module} imports its neighbour {other}"


def test_command_lines_are_not_imported_by_others() -> None:
    command_lines = FLOORS[HALL + 1]
    for module in MODULES:
        if floor(module) <= HALL + 1:
            assert not {other for other in imports(module) if other != module} & command_lines, module


def test_feature_extraction_knows_nothing_of_dept_vl() -> None:
    for module in MODULES:
        if module.startswith("feature_extraction"):
            assert not [name for name in imports(module) if name.startswith("dept_vl")], module


def test_there_are_no_circles() -> None:
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module not in finished:
            for other in set(imports(module)) - {module, "dept_vl", "feature_extraction"}:
                visit(other, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_file_is_long() -> None:
    lengths = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_the_core_can_be_read_in_an_hour() -> None:
    assert sum(map(lines_of_code, core_files())) <= LARGEST_CORE


def test_lines_of_code_leave_out_docstrings_comments_and_space() -> None:
    path = REPOSITORY / "dept_vl" / "metrics" / "__init__.py"  # a docstring only
    assert lines_of_code(path) == 0
    assert (
        10 < lines_of_code(REPOSITORY / "dept_vl" / "types.py") < len(MODULES["dept_vl.types"].read_text().splitlines())
    )


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_printed_asserted_or_left_to_do(module: str) -> None:
    for node in ast.walk(TREES[module]):
        place = f"{module}, line {getattr(node, 'lineno', '?')}"
        assert not isinstance(node, ast.Assert), f"{place}: raise what the user can act on"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "exit", "breakpoint"), f"{place}: say it by command_line.say"
        if isinstance(node, ast.Name):
            assert node.id != "NotImplementedError", place
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", MODULES[module].read_text()), module


@pytest.mark.parametrize("module", MODULES)
def test_every_function_is_annotated(module: str) -> None:
    for function in functions(TREES[module]):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        bare = [one.arg for one in named if one is not None and one.annotation is None]
        assert set(bare) <= {"self", "cls"}, f"{module}.{function.name}: {bare}"
        assert function.returns is not None, f"{module}.{function.name} has no return annotation"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_and_class_has_a_docstring(module: str) -> None:
    tree = TREES[module]
    assert module.endswith("__init__") or ast.get_docstring(tree), module
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node in tree.body:
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_no_file_speaks_of_a_machine_s_own_paths() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    names = tracked.stdout.split() if tracked.returncode == 0 else [str(path) for path in SOURCES]
    texts = [REPOSITORY / name for name in names if not name.endswith((".safetensors", "tokenizer.json"))]
    found = [
        f"{path.relative_to(REPOSITORY)}: {line.strip()}"
        for path in texts
        if path.is_file() and path != Path(__file__)
        for line in path.read_text(errors="ignore").splitlines()
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def run_tool(*arguments: str) -> str:
    """What a tool finds wrong; empty if nothing."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    assert run_tool("ruff", "check", "--no-cache") == ""
    assert run_tool("ruff", "format", "--no-cache", "--check", *PACKAGES, "tests") == ""


def test_mypy_finds_nothing() -> None:
    assert run_tool("mypy") == ""
