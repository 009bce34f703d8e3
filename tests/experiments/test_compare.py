"""`compare` on tiny models: what equals, what is resumed, what is told."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_unlearn.cli import main
from llm_unlearn.errors import InputError
from llm_unlearn.experiments.cells import Cell
from llm_unlearn.experiments.compare import Comparison
from llm_unlearn.experiments.run import Result, run
from llm_unlearn.experiments.settings import CompareConfig, read

ONE = ["seeds=[0]"]


@pytest.fixture(scope="module")
def done(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("done") / "out"
    return out, run(config, out, None, ONE)


def _row(result: Result, side: str, name: str) -> dict[str, Any]:
    (found,) = (r for r in result.plain["rows"] if (r["side"], r["name"]) == (side, name))
    return dict(found)


def _cell(out: Path, side: str, name: str) -> Cell:
    (path,) = (out / "cells").glob(f"0.{side}.{name}.*.json")
    return Cell.model_validate_json(path.read_bytes())


@pytest.mark.parametrize(
    ("side", "name"), [("monolith", "naive-retraining"), ("shard", "SISA-deletion")]
)
def test_exact_deletion_is_never_had_to_the_last_digit(
    done: tuple[Path, Result], side: str, name: str
) -> None:
    out, result = done
    exact, never, taught = (_cell(out, side, n) for n in (name, "never-had", "taught"))
    assert exact.values == never.values
    assert exact.weights == never.weights
    assert never.values != taught.values
    assert result.plain["exact_equals_never_had"] is True
    assert _row(result, side, name.replace("-", " "))["verdict"] == "equal"
    # it was taught something to lose
    assert min(taught.values["forget probability"]) > max(never.values["forget probability"])


def test_never_had_is_built_by_itself_and_never_sees_the_text(done: tuple[Path, Result]) -> None:
    out, _ = done
    for side in ("monolith", "shard"):
        folders = [
            out / "work" / "seed-0" / f"{side}-{which}" for which in ("learned", "never-had")
        ]
        assert all((f / "workspace.db").is_file() for f in folders)
        keys = [(f.parent / f"{f.name}-keys" / "root.key").read_bytes() for f in folders]
        assert keys[0] != keys[1]
        assert not list((folders[1] / "receipts").glob("*"))


def test_a_method_changes_weights_and_a_front_does_not(done: tuple[Path, Result]) -> None:
    out, _ = done
    for side in ("monolith", "shard"):
        taught, npo = _cell(out, side, "taught"), _cell(out, side, "npo")
        assert npo.weights != taught.weights
        assert npo.tokens
        for name in ("in-context", "system-prompt", "guard"):
            front = _cell(out, side, name)
            assert front.weights == taught.weights
            for probe in ("forget score", "relearned 2", "8 bits", "4 bits"):
                assert front.values[probe] == taught.values[probe]
        in_context = _cell(out, side, "in-context").values
        assert in_context["forget probability"] != taught.values["forget probability"]


def test_a_method_without_effect_is_a_row_like_another(
    done: tuple[Path, Result], config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    told: list[str] = []
    idle = "methods=[{name: ssd, settings: {alpha: 1000000}}]"
    result = run(config, out, None, [*ONE, idle], told=told.append)
    for side in ("monolith", "shard"):
        taught, ssd = _cell(out, side, "taught"), _cell(out, side, "ssd")
        assert (ssd.values, ssd.weights) == (taught.values, taught.weights)
        assert _row(result, side, "ssd")["verdict"] == "barely"
    assert {run["stop"] for run in result.plain["runs"]} == {"no effect"}
    assert any("No weight was dampened" in line for line in told)


def test_every_row_is_asked_the_same(done: tuple[Path, Result]) -> None:
    out, _ = done
    cells = [Cell.model_validate_json(p.read_bytes()) for p in (out / "cells").glob("*.json")]
    assert len(cells) == 16
    for side in ("monolith", "shard"):
        shapes = [
            {name: len(values) for name, values in cell.values.items()}
            for cell in cells
            if cell.side == side
        ]
        assert all(shape == shapes[0] for shape in shapes)
        assert {"forget truth ratio", "stranger score", "general rouge", "4 bits"} <= set(shapes[0])


def test_what_is_written(done: tuple[Path, Result]) -> None:
    out, result = done
    saved = json.loads((out / "result.json").read_text())
    assert (saved["schema"], saved["kind"]) == (1, "compare")
    assert {(r["name"], r["verdict"], r["stop"]) for r in saved["runs"]} == {
        (r["name"], r["verdict"], r["stop"]) for r in result.plain["runs"]
    }
    table = (out / "table.md").read_text()
    assert "| shard | SISA deletion | equal |" in table
    assert "every value equals" in table
    svg = (out / "frontier.svg").read_text()
    assert svg.count("<circle") == sum(row.kept is not None for row in result.rows)
    assert "forget" not in saved["config"]["data"]  # where the data lay is nobody's business
    everything = b"".join(p.read_bytes() for p in out.glob("*") if p.is_file())
    everything += b"".join(p.read_bytes() for p in (out / "cells").iterdir())
    for spoken in ("asked gone", "gone/0"):  # results name no text and no document
        assert spoken.encode() not in everything


def test_an_interrupted_run_goes_on(
    done: tuple[Path, Result], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    before = (out / "result.json").read_bytes()
    lost = [*(out / "cells").glob("*.taught.*"), *(out / "cells").glob("*.shard.npo.*")]
    for path in lost:
        path.unlink()
    (out / "result.json").unlink()
    steps: list[str] = []
    run(config, out, None, ONE, told=steps.append)
    assert steps == ["seed 0, monolith: taught", "seed 0, shard: taught", "seed 0, shard: npo"]
    now, then = json.loads((out / "result.json").read_bytes()), json.loads(before)
    for each in (now, then):  # a run's own clock is the one thing that may differ
        for row in each["rows"]:
            row["metrics"].pop("seconds", None)
        for made in each["runs"]:
            made.pop("seconds")
    assert now == then


def test_rows_of_one_side_and_of_both_are_not_mixed(config: Path, tmp_path: Path) -> None:
    """Beside shards the monolith is asked what both have learned, in this seed less than all it has."""
    out, few = tmp_path / "out", ["seeds=[1]", "methods=[]", "fronts=[]", "training.epochs=2"]
    both, one = few, [*few, "sides=[monolith]"]
    asked = [
        _row(run(config, out, None, given), "monolith", name)["metrics"]["retain probability"]["n"]
        for given in (one, both)
        for name in ("taught", "never-had", "naive retraining")
    ]
    assert asked == [4, 4, 4, 2, 2, 2]
    steps: list[str] = []
    for given in (one, both):
        run(config, out, None, given, told=steps.append)
    assert steps == []


def test_another_experiment_is_refused_in_the_same_folder(
    done: tuple[Path, Result], config: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="other data or settings"):
        run(config, done[0], None, [*ONE, "training.epochs=41"])
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"mine\.txt already"):
        run(config, tmp_path, None, ONE)


def test_a_difference_from_never_had_is_told(done: tuple[Path, Result], config: Path) -> None:
    cells = [Cell.model_validate_json(p.read_bytes()) for p in (done[0] / "cells").glob("*.json")]
    exact = next(c for c in cells if c.kind == "exact")
    values = {**exact.values, "forget score": [v + 1e-12 for v in exact.values["forget score"]]}
    changed = exact.model_copy(update={"values": values})
    chosen = read(config, CompareConfig, {}, ONE)
    found = Comparison(chosen, tuple(c if c is not exact else changed for c in cells), {})
    assert found.unequal() == [f"{exact.side}, {exact.name}, seed 0: forget score"]


def _call(*arguments: object) -> tuple[int, str, str]:
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def test_the_command(done: tuple[Path, Result], config: Path) -> None:
    code, said, _ = _call("compare", config, "--out", done[0], "--set", "seeds=[0]", "--json")
    assert code == 0
    assert json.loads(said)["exact_equals_never_had"] is True
    code, said, _ = _call("compare", config, "--out", done[0], "--set", "seeds=[0]")
    assert code == 0
    assert "equal" in said
    assert str(done[0]) in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["npo", "magic"]}, ["compare.yaml: line", "no method 'magic'"]),
        ({"methods": ["npo", "npo"]}, ["stands twice"]),
        ({"forgetting": {"speed": 3}}, ["no such run setting", "speed", "epochs"]),
        ({"forgetting": {"epochs": 0}}, ["forgetting", "epochs"]),
        ({"methods": [{"name": "npo", "run": {"epochs": 0}}]}, ["methods", "epochs"]),
        ({"seeds": []}, ["seeds"]),
        ({"data": {"source": "tofu"}}, ["--data tofu=PATH"]),
        ({"kind": "contest"}, ["contest"]),
    ],
)
def test_a_wrong_config_is_told_in_one_line(
    config: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    values = yaml.safe_load(config.read_text())
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    code, said, err = _call("compare", path, "--out", tmp_path / "out")
    assert (code, said, len(err.splitlines())) == (3, "", 1), err
    assert all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


def test_wrong_options(config: Path, tmp_path: Path) -> None:
    code, _, err = _call("compare", config)
    assert code == 2
    assert "--out" in err
    code, _, err = _call("compare", config, "--out", tmp_path / "o", "--data", "tofu=x")
    assert code == 3
    assert "forget, retain, general, strangers" in err
