"""Who imports whom: never upward, never in a circle, and a kernel knows arrays alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.paths import ROOT

DOORS = {"run_experiment", "plot_toy", "plot_A5", "plot_theory", "compare_to_paper"}
MODELS = {"linear_cde", "torch_layers", "torch_sequence_models"}
RANKS = {
    "harness": 1,
    "kernels": 2,
    "data_dir": 2,
    **dict.fromkeys(MODELS, 3),
    "experiments": 4,
    "launchers": 4,
    "verdict": 4,
    "benchmarks": 5,
    **dict.fromkeys(DOORS, 5),
}
# Neighbours of one rank know each other only so.
NEIGHBOURS = {("torch_sequence_models", "torch_layers"), ("launchers", "experiments")}
FRAMEWORKS = {"jax", "torch", "diffrax", "equinox", "optax"}
WITHOUT_FRAMEWORK = ("harness", "data_dir", "verdict", "launchers", *DOORS)


def modules() -> dict[str, Path]:
    """Every Python file outside the tests, by its module's name."""
    files = [*ROOT.glob("*.py")]
    files += [f for room in RANKS if (ROOT / room).is_dir() for f in (ROOT / room).rglob("*.py")]
    names = {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


MODULES = modules()


def imports(file: Path, top_level_only: bool = False) -> Iterator[str]:
    """Modules that a file imports, wherever in it the import stands."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def room(module: str) -> str:
    return module.partition(".")[0]


def ours(module: str) -> list[str]:
    return [name for name in imports(MODULES[module]) if name in MODULES]


@pytest.mark.parametrize("module", MODULES)
def test_imports_never_run_upward_nor_into_a_neighbours_room(module):
    for imported in ours(module):
        above, below = room(module), room(imported)
        assert below not in DOORS, f"{module} imports the door {imported}"
        if above != below and (above, below) not in NEIGHBOURS:
            assert RANKS[below] < RANKS[above], f"{module} imports {imported}"


def test_every_python_file_has_a_rank():
    assert {room(module) for module in MODULES} <= RANKS.keys()


def test_no_two_files_import_each_other_by_any_way():
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in finished:
            for imported in ours(module):
                visit(imported, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) == "kernels"])
def test_a_kernel_knows_of_the_harness_the_errors_alone(module):
    known = {name for name in ours(module) if room(name) == "harness"}
    assert known <= {"harness.errors"}


def test_the_verdict_knows_records_and_names_but_no_experiment():
    for module in MODULES:
        if room(module) == "verdict":
            assert {room(name) for name in ours(module)} <= {"verdict", "harness"}


def reached(module: str) -> set[str]:
    """What importing a module imports of ours and of the frameworks, at once."""
    found, waiting = set(), [module]
    while waiting:
        for name in imports(MODULES[waiting.pop()], top_level_only=True):
            known = name if name in MODULES else room(name)
            if known not in found and (known in MODULES or known in FRAMEWORKS):
                found.add(known)
                waiting += [known] if known in MODULES else []
    return found


def test_the_jax_part_imports_no_torch_and_the_pytorch_part_no_jax():
    for module in ("linear_cde", "experiments.lcde_training"):
        assert "torch" not in reached(module)
    for module in ("torch_sequence_models", "experiments.ssm_training"):
        assert not reached(module) & (FRAMEWORKS - {"torch"})


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in WITHOUT_FRAMEWORK])
def test_figures_verdict_launchers_and_plans_need_no_framework(module):
    assert not reached(module) & FRAMEWORKS


@pytest.mark.parametrize("name", ["lcde_toy", "lcde_a5", "ssm_toy", "ssm_a5", "theory"])
def test_an_experiment_is_planned_without_a_framework(name):
    assert not reached(f"experiments.{name}") & FRAMEWORKS
