"""A wheel, built and installed in a new environment, run from a folder with other people's names in it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources (a build writes beside them)."""
    import shutil

    folder = tmp_path_factory.mktemp("build")
    sources = folder / "sources"
    sources.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    for name in ("llm_unlearn", "retrieval", "eval"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(sources)], check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_one_package_with_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"llm_unlearn"}
    for source, target in (("llm_unlearn", ""), ("retrieval", "retrieval/"), ("eval", "eval/")):
        for file in (ROOT / source).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"llm_unlearn/{target}{file.relative_to(ROOT / source)}" in names


def test_it_runs_beside_folders_and_files_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    # the dependencies are those of this environment; only the package itself is new
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = environment.glob("lib/python*/site-packages")
    ours = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "dependencies.pth").write_text(ours + "\n")
    work = tmp_path / "work"
    for name in ("eval", "retrieval"):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    (work / "eval.py").write_text("raise RuntimeError('the wrong one')\n")
    code = (
        "import llm_unlearn, llm_unlearn.retrieval.store, llm_unlearn.eval.overlap as o; "
        "import llm_unlearn.workspace, llm_unlearn.takedown.page; "
        "print(o.rouge_l('a b', 'a b').recall, llm_unlearn.__file__)"
    )
    done = subprocess.run(
        [str(python), "-c", code], cwd=work, check=True, capture_output=True, text=True
    )
    recall, where = done.stdout.split()
    assert recall == "1.0"
    assert Path(where).is_relative_to(environment)
    script = [str(environment / "bin" / "llm-unlearn"), "init", "ws", "--keys", "keys"]
    subprocess.run(script, cwd=work, check=True, capture_output=True)
    assert (work / "ws" / "workspace.db").is_file()
    assert not (work / "ws" / "keys").exists()


def test_the_constraints_pin_this_environment() -> None:
    """Bits depend on versions, so what is tested is what is pinned."""
    import importlib.metadata

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    for package in ("torch", "transformers", "peft", "numpy", "faiss-cpu", "sentence-transformers"):
        assert importlib.metadata.version(package).split("+")[0] == pins[package]


def test_python_started_in_a_checkout_finds_everything() -> None:
    """There `llm_unlearn` is found before the installed package, and its two folders lie beside it."""
    code = "import llm_unlearn.eval.page, llm_unlearn.retrieval.store; from llm_unlearn import Workspace"
    for command in (["-c", code], ["-m", "llm_unlearn.demo.muse", "--help"]):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
