"""Settings: round trips, and one line that names file, line, key, value and what would be right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llm_unlearn.config import Config, dump_config, load_config
from llm_unlearn.errors import InputError
from llm_unlearn.separation import ACCESS_RULE, DEFAULT_RULE, Condition, Rule, SeparationPolicy

CONFIGS = Path(__file__).parents[2] / "configs"

words = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).filter(
    lambda text: text.strip() == text
)
conditions = st.one_of(
    st.builds(Condition, license=st.lists(words, min_size=1).map(tuple)),
    st.builds(Condition, tags=st.lists(words, min_size=1).map(tuple), acl=st.booleans()),
    st.builds(Condition, personal_data=st.just(("email", "iban")), min_length=st.integers(0, 9)),
)
# hypothesis draws words out of the package's own source, those that rules may not have among them
names = words.filter(lambda text: text not in (DEFAULT_RULE, ACCESS_RULE, "tombstone"))
policies = st.builds(
    SeparationPolicy,
    default=st.sampled_from(["store", "refused"]),
    rules=st.lists(
        st.builds(Rule, name=names, when=conditions, then=st.sampled_from(["store", "refused"])),
        unique_by=lambda rule: rule.name.strip(),
        max_size=3,
    ).map(tuple),
)


@example(SeparationPolicy(), "one\x85two\u2028 three\r\n four \n", 0.1, None)
@given(
    policies,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t.strip()),
    st.floats(min_value=1e-12, max_value=0.1),
    st.none() | st.integers(1, 99),
)
def test_a_dump_loads_back_to_the_same(
    policy: SeparationPolicy, message: str, rate: float, layers: int | None
) -> None:
    base = Config()
    config = base.model_copy(
        update={
            "separation": policy,
            "answering": base.answering.model_copy(update={"decline_message": message}),
            "training": base.training.model_copy(
                update={"learning_rate": rate, "top_layers": layers}
            ),
        }
    )
    text = dump_config(config)
    assert _load(text) == config
    assert dump_config(_load(text)) == text


def _load(text: str, *overrides: str) -> Config:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        return load_config(path, overrides)


def test_default_yaml_is_the_defaults() -> None:
    """After a change of a setting: python -c "from llm_unlearn.config import *;
    print(dump_config(Config()), end='')" > configs/default.yaml"""
    assert (CONFIGS / "default.yaml").read_text() == dump_config(Config())
    assert load_config(CONFIGS / "default.yaml") == Config() == load_config(None)


def test_every_config_file_loads_and_is_known_here() -> None:
    experiments = {
        f"{name}.yaml" for name in ("hardness", "hazard", "poison", "separation", "tofu")
    }
    paths = {path.name: path for path in CONFIGS.glob("*.yaml")}
    files = {name: load_config(path) for name, path in paths.items() if name not in experiments}
    assert set(files) == {"default.yaml", "rag.yaml", "takedown.yaml"}
    assert all("kind: " in paths[name].read_text() for name in experiments)
    assert all(rule.then != "corpus" for rule in files["rag.yaml"].separation.rules)
    assert not files["rag.yaml"].separation.asks_personal_data
    assert files["takedown.yaml"].takedown.near_duplicate < Config().takedown.near_duplicate


def test_every_setting_of_this_package_is_described() -> None:
    for section in (Config, *(type(getattr(Config(), name)) for name in Config.model_fields)):
        for name, info in getattr(section, "model_fields", {}).items():
            if section.__module__ in ("llm_unlearn.config", "llm_unlearn.separation"):
                assert info.description, name


def test_overrides_go_on_top_in_order_and_make_missing_sections() -> None:
    config = _load(
        "training: {epochs: 2, shards: 3}",
        "training.epochs=5",
        "training.epochs=6",
        "training.learning_rate=1e-3",
        "training.top_layers=null",
        "answering.fallback=base",
        "separation.rules=[]",
    )
    assert (config.training.epochs, config.training.shards) == (6, 3)
    assert (config.training.learning_rate, config.training.top_layers) == (0.001, None)
    assert config.answering.fallback == "base"
    assert config.separation.rules == ()


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "c.yaml") == Config()


BAD_FILES = [
    (
        "version: 1\ntraining:\n  shards: 4\n  epocs: 3\n",
        "line 4: training.epocs = 3: unknown key. Did you mean 'epochs'?",
    ),
    (
        "training:\n  dtype: float23\n  shards: 0\n",
        "line 2: training.dtype = 'float23': should be 'bfloat16' or 'float32' (and 1 more). "
        "Did you mean 'float32'?",
    ),
    ("model: x\nshards: 3\n", "line 2: shards = 3: unknown key. Did you mean 'training.shards'?"),
    (
        "zzz: 1\n",
        "line 1: zzz = 1: unknown key. Known here are version, model, embedder, separation, "
        "retrieval, training, answering, takedown, serving, guard.",
    ),
    (
        "training:\n  batch_size: 2.5\n",
        "line 2: training.batch_size = 2.5: should be a valid integer. "
        "Meaning: Documents in one step. Default: 4.",
    ),
    (
        "training:\n  clip: yes\n",
        "line 2: training.clip = True: YAML reads yes, no, on and off as true and false. "
        "Write a number.",
    ),
    (
        "training:\n\n  learning_rate: 2\n",
        "line 3: training.learning_rate = 2: at a rate above 0.1 AdamW diverges and every adapter "
        "answers noise. Use 1e-4 to 5e-3.",
    ),
    (
        "version: 2\n",
        "line 1: version = 2: this package reads format 1 and would misread another. Install the "
        "llm-unlearn that wrote the file, or write version: 1 and check every key.",
    ),
    (
        "training: 3\n",
        "line 1: training = 3: should hold keys with values. "
        "Meaning: How the corpus is divided and learned.",
    ),
    (
        "separation:\n  rules:\n    - name: a\n      when: {license: MIT}\n      then: corpus\n"
        "    - name: b\n      when: {licence: MIT}\n      then: store\n",
        "line 7: separation.rules.1.when.licence = 'MIT': unknown key. Did you mean 'license'?",
    ),
    (
        "separation:\n  rules:\n  - name: a\n    when: {acl: true}\n    then: corpus\n",
        "line 3: separation.rules.0: an adapter answers everybody, so access groups are "
        "no reason to train on a document. Use `then: store`, or, for a group with a shard of its own "
        "(training.placement), ask for tags, a source or a licence instead of `acl`.",
    ),
    (
        "separation:\n  rules:\n  - name: a\n    when: {}\n    then: corpus\n",
        "line 4: separation.rules.0.when: an empty condition matches every document and hides the "
        "rules below it. Say what the rule asks for, or use `default` for the rest.",
    ),
    (
        "separation:\n  default: corpus\n",
        "line 2: separation.default = 'corpus': `default: corpus` would train on every document "
        "that nobody thought of. Use `store`, and write a last rule with "
        '`when: {subject: "*"}` if you mean it.',
    ),
    ("a: 1\na: 2\n", "line 2: the key 'a' was already given in line 1. Keep one of the two."),
    (
        "x: &a [*a]\n",
        "line 1: this value is used again by an alias (*). Write it out in both places.",
    ),
    ("model: [1\n", "line 2: not valid YAML: expected ',' or ']', but got '<stream end>'."),
    (
        "model: !!python/object/apply:os.getpid []\n",
        "line 1: not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.getpid'.",
    ),
    ("3: 4\n", "line 1: the key '3' is not text."),
    ('model: "\\ud800"\n', "line 1: the value holds half a character"),
    ("- a\n", "line 1: the config is a list, not keys with values."),
    ("[" * 5000, "nested too deeply."),
    ("version: " + "9" * 5000, "a value cannot be read: Exceeds the limit"),
    ("version: 2024-13-45\n", "a value cannot be read: month must be in 1..12."),
    ("a: \x00\n", "not valid YAML: unacceptable character #x0000"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epocs=3", "training.epocs = 3: unknown key. Did you mean 'epochs'?"),
        ("training.x.y=3", "training.x: unknown key. Known here are shards, slices,"),
        ("training.dtype=fp32", "training.dtype = 'fp32': should be 'bfloat16' or 'float32'."),
        ("model.x=3", "model is a str and holds no key 'x'. Set it as a whole."),
        ("training.shards=[", "line 1: not valid YAML: expected the node content"),
        ("training.epochs", "not of the form key.key=value."),
        ("=3", "not of the form key.key=value."),
    ],
)
def test_a_bad_override_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        _load("model: m\ntraining: {shards: 2}", "answering.retrieve=2", override)
    assert str(caught.value).startswith(f"--set {override}: {message}")


@pytest.mark.parametrize("make", ["missing", "folder", "latin-1"])
def test_a_file_that_cannot_be_read(tmp_path: Path, make: str) -> None:
    path = tmp_path / "c.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "latin-1":
        path.write_bytes("model: é".encode("latin-1"))
    told = {
        "missing": f"The config {path} cannot be read: No such file or directory.",
        "folder": f"The config {path} cannot be read: Is a directory.",
        "latin-1": f"{path}: not UTF-8.",
    }[make]
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert caught.value.problem == told


@example("\U00014000:".encode())  # a key that no terminal can show
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
)
def test_no_bytes_give_anything_but_a_config_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_bytes(data)
    try:
        result: Any = load_config(path)
    except InputError as error:
        result = error
    assert isinstance(result, Config | InputError)
    assert isinstance(result, Config) or str(result).isprintable()


def test_the_import_loads_no_model_library(tmp_path: Path) -> None:
    program = (
        "import sys, llm_unlearn.config, llm_unlearn.readers, llm_unlearn.personal_data\n"
        "heavy = {'torch', 'faiss', 'transformers', 'numpy', 'datasets', 'presidio_analyzer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
