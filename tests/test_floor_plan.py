"""Imports point down only. The rooms of three packages, from the ground up."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "core" / "src"
PLUGINS = {path.name for path in ROOT.glob("plugins/*/src/*")}

FLOORS = {
    "trainer_callback": [
        {"errors", "arguments", "tensors", "specs", "digests"},
        {"records"},
        {"tracked"},
        {"protocol"},
        {"hookspecs", "outbox"},
        {"tracking", "tracker_process"},
        {"discovery", "state", "hints"},
        {"wording"},
        {"values", "checks"},
        {"calls"},
        {"command_line"},
        {"plugins"},
    ],
    "trainer": [
        {"config", "counters", "result"},
        {"processes"},
        {"data", "writers"},
        {"step"},
        {"snapshots"},
        {"view"},
        {"engine"},
        {"run", "hosting"},
        {"loop"},
        {"testing"},
    ],
    "trainer_tool": [
        {"new_plugin", "snapshot_report", "place", "table", "run_files", "commands"},
        {"plugin_levels", "index_page"},
        {"plugin_check", "plugin_doctor", "plugin_index"},
        {"plugin_report", "snapshot_command", "run_curves"},
        {"run_pictures", "run_table"},
        {"run_page"},
        {"report_command", "compare_command"},
        {"cli"},
    ],
}
"""Package -> its rooms and folders, from the ground up."""


def imported_modules(path: Path) -> set[str]:
    """Dotted names of what a file imports at run time; `if TYPE_CHECKING:` blocks do not count."""
    found: set[str] = set()
    folders = path.relative_to(CORE).parts[:-1] if path.is_relative_to(CORE) else ("",)

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            home = folders[: len(folders) + 1 - node.level] if node.level else ()
            found.add(".".join([*home, *([node.module] if node.module else [])]))

    Visitor().visit(ast.parse(path.read_text()))
    return found


def read_imports(package: str) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """Each room of `package`, as the path of its module, and the modules of it that it imports."""
    return {
        path.relative_to(CORE / package).with_suffix("").parts: {
            tuple(name.split(".")[1:])
            for name in imported_modules(path)
            if name.startswith(f"{package}.")
        }
        for path in sorted((CORE / package).rglob("*.py"))
        if path.parent / path.name != CORE / package / "__init__.py"
    }


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_and_folder_is_on_a_floor(package: str) -> None:
    found = {room[0] for room in read_imports(package)}
    assert found == set().union(*FLOORS[package])


@pytest.mark.parametrize("package", FLOORS)
def test_imports_point_down_only(package: str) -> None:
    floor = {each: level for level, names in enumerate(FLOORS[package]) for each in names}
    for (first, *_), imported in read_imports(package).items():
        for other in {name[0] for name in imported} - {first} if first in floor else ():
            assert floor[other] < floor[first], f"{first} imports {other}"


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_of_one_folder_import_each_other_in_no_circle(package: str) -> None:
    rooms = read_imports(package)
    TopologicalSorter({room: names & rooms.keys() for room, names in rooms.items()}).prepare()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("trainer_callback", {"trainer", "trainer_lm", "trainer_tool", "torch", "numpy"}),
        ("trainer", {"trainer_lm", "trainer_tool", *PLUGINS}),
        ("trainer_lm", {"trainer_tool", *PLUGINS}),
        ("trainer_tool", PLUGINS),
    ],
)
def test_a_lower_package_knows_no_higher_one(package: str, forbidden: set[str]) -> None:
    for path in (CORE / package).rglob("*.py"):
        roots = {name.split(".")[0] for name in imported_modules(path)}
        assert not roots & forbidden, path


def test_only_discovery_reads_installed_metadata() -> None:
    readers = {
        path.relative_to(CORE).as_posix()
        for path in CORE.rglob("*.py")
        if {"importlib_metadata", "importlib.metadata"} & imported_modules(path)
    }
    assert readers == {"trainer_callback/discovery.py"}


def test_a_plugin_imports_the_plugin_system_only() -> None:
    own = {"trainer", "trainer_lm", "trainer_tool"}
    for source in (ROOT / "plugins").glob("*/src/*/*.py"):
        roots = {name.split(".")[0] for name in imported_modules(source)}
        assert not roots & own, source


def test_no_file_has_grown_a_second_noun() -> None:
    sources = [*CORE.rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")]
    lengths = {path: len(path.read_text().splitlines()) for path in sources}
    assert {path: count for path, count in lengths.items() if count > 350} == {}


def test_the_running_python_is_one_that_is_promised() -> None:
    assert sys.version_info >= (3, 10)
