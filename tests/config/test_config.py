"""The config: every key documented, nothing silently accepted, a lossless round trip, overrides that reach every key."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pages import script
from run_harness import table_source, table_tree, to_toml

import distqexp.config as module
from distqexp.config import (
    Config,
    config_from_tree,
    config_table,
    config_to_tree,
    load_config,
    without_paths,
)
from distqexp.errors import DistqexpError, UsageError

REPOSITORY = Path(__file__).resolve().parents[2]


def sections() -> dict[str, type]:
    """Every dataclass of the config, by its name."""
    found = {name: item for name, item in vars(module).items() if name.endswith("Config") and isinstance(item, type)}
    return {name: item for name, item in found.items() if dataclasses.is_dataclass(item)}


def rich_tree() -> dict[str, Any]:
    """A config in which every optional part is there."""
    tree = table_tree(data={"eval": table_source("eval.csv"), "eval_private": True})
    columns = {"target": "died", "features": ["age", "dose"], "missing_flag_above": 0.25, "constant": True}
    tree["data"]["public"] = table_source("public.csv", rows=[[0, 10], [20, 40]], where="age > 1", columns=columns)
    tree["data"]["private"] = [table_source(f"{name}.csv", shard=name, unit=True) for name in ("north", "south")]
    tree["subspace"] = {"kind": "sjlt", "k": 2, "seed": 5, "nonzeros": 1}
    tree["tune"] = {"step": [0.5, 1], "rotate": [0.0, 30.0], "private": [table_source("other.csv")]}
    return tree


def paths(tree: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every table of a tree, lists by number."""
    found = [above] if isinstance(tree, dict) else []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        found += paths(value, (*above, str(name)))
    return found


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


# --- the table ---------------------------------------------------------------------------------------------------


def test_every_key_is_in_the_table_with_its_type_default_and_meaning() -> None:
    lines = config_table().replace(r"\|", "/").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in rows} == {4}
    assert len(sections()) == 15
    expected = []
    for item in sections().values():
        if item is Config:
            continue
        for field in dataclasses.fields(item):
            assert field.metadata["doc"].strip(), (item, field.name)
            expected.append((field.name, str(field.metadata["doc"]).replace("|", "/")))
    found = [(row[0], row[3]) for row in rows[2:] if not row[0].startswith("**")]
    assert sorted(expected) == sorted(found)
    assert all(row[1] and row[2] for row in rows[2:] if not row[0].startswith("**"))
    assert not [row for row in rows if "typing" in row[1] or "class" in row[1]]


def test_every_section_is_a_heading_of_the_table() -> None:
    table = config_table()
    for field in dataclasses.fields(Config):
        assert f"**[{field.name}]**" in table


def test_the_example_of_the_page_is_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLINIC", "/clinic")
    example = script("write_config_docs").text().split("```toml\n")[1].split("```")[0]
    config = config_from_tree(tomllib.loads(example), Path("/here"))
    assert config.data.private[0].path == "/clinic/patients.csv"
    assert config.mechanism.rounds == 4


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [table_tree(), rich_tree()], ids=["plain", "rich"])
def test_round_trip(tree: dict[str, Any]) -> None:
    config = config_from_tree(tree)
    full = config_to_tree(config)
    assert config_from_tree(full) == config
    assert config_from_tree(json.loads(json.dumps(full))) == config
    assert config_to_tree(config_from_tree(full)) == full
    hints = typing.get_type_hints(Config)
    assert set(full) == set(hints)


def test_the_shipped_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "SST2", "PNEUMONIA"):
        monkeypatch.setenv(f"DISTQEXP_{name}", "/data")
    files = sorted((REPOSITORY / "configs").rglob("*.toml"))
    assert {path.stem for path in files} >= {"digits", "icu", "mnist-rotated", "mnist-kronecker", "tuned-eps1"}
    for path in files:
        config = load_config(path)
        assert config_from_tree(config_to_tree(config)) == config
    embedded = load_config()
    assert embedded == load_config(REPOSITORY / "configs" / "digits.toml")


def test_without_paths_drops_paths_and_placement_and_nothing_else() -> None:
    config = config_from_tree(rich_tree(), Path("/home/someone"))
    bare = without_paths(config)
    assert "someone" not in json.dumps(config_to_tree(bare))
    moved = config_from_tree(rich_tree(), Path("/elsewhere"))
    moved = dataclasses.replace(moved, engine=dataclasses.replace(moved.engine, kind="dask", workers=3))
    assert without_paths(moved) == bare
    for name in ("micro_batch", "threads", "device"):
        assert getattr(bare.engine, name) == getattr(config.engine, name)
    assert bare.privacy == config.privacy
    assert bare.mechanism == config.mechanism
    assert bare.data.private[0].columns == config.data.private[0].columns


# --- paths -------------------------------------------------------------------------------------------------------


def test_paths_are_taken_from_the_folder_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARD", "seven")
    tree = table_tree()
    tree["data"]["private"] |= {"path": "in/${WARD}.csv", "blank": "/abs/blank.npy"}
    (tmp_path / "c.toml").write_text(to_toml(tree), "utf-8")
    monkeypatch.chdir("/")
    config = load_config(tmp_path / "c.toml")
    assert config.data.private[0].path == str(tmp_path / "in" / "seven.csv")
    assert config.data.private[0].blank == "/abs/blank.npy"
    assert config.data.public is not None
    assert config.data.public.path == str(tmp_path / "public.csv")
    with pytest.raises(UsageError, match=r"data\.private\.path.*NOT_SET"):
        load_config(tmp_path / "c.toml", ["data.private.path=${NOT_SET}/x"])


# --- overrides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("privacy.epsilon=0.25", ("privacy", "epsilon"), 0.25),
        ("privacy.epsilon=2", ("privacy", "epsilon"), 2.0),
        (" privacy.epsilon =2", ("privacy", "epsilon"), 2.0),
        ("engine.kind=serial", ("engine", "kind"), "serial"),
        ('engine.kind="serial"', ("engine", "kind"), "serial"),
        ("output.keep_sketches=true", ("output", "keep_sketches"), True),
        ("data.private.0.rows=[[0, 5], [7, 9]]", ("data", "private", "0", "rows"), [[0, 5], [7, 9]]),
        ("data.private.1.columns.target=y", ("data", "private", "1", "columns", "target"), "y"),
        ("data.public.columns.exclude=['a','b']", ("data", "public", "columns", "exclude"), ["a", "b"]),
        ("data.public.columns.exclude=a", ("data", "public", "columns", "exclude"), ["a"]),
        ("model.args.hidden=[3, 4]", ("model", "args", "hidden"), [3, 4]),
        ("model.args={inputs=2}", ("model", "args"), {"inputs": 2}),
        ("data.public.where=age == 1 and dose < 2", ("data", "public", "where"), "age == 1 and dose < 2"),
        ("data.population=a=b", ("data", "population"), "a=b"),
    ],
)
def test_overrides(tmp_path: Path, override: str, path: tuple[str, ...], expected: Any) -> None:
    (tmp_path / "c.toml").write_text(to_toml(rich_tree()), "utf-8")
    assert at(config_to_tree(load_config(tmp_path / "c.toml", [override])), path) == expected


def test_later_overrides_win_and_a_single_private_table_needs_no_number() -> None:
    config = load_config(None, ["privacy.epsilon=2", "privacy.epsilon=3", "data.private.rows=[[0, 9]]"])
    assert config.privacy.epsilon == 3.0
    assert config.data.private[0].rows == ((0, 9),)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilon", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("privacy..epsilon=3", "expected section.key=value"),
        ("privacy.epsilon.deep=3", "privacy.epsilon is a number; expected a table"),
        ("data.private.rows=[[0,9]]", "data.private is a list; expected .* such as data.private.0.rows"),
        ("data.private.9.rows=[[0,9]]", "data.private is a list"),
        ("data.private.x.0.rows=[[0,9]]", "data.private is a list"),
        ("data.private.0=3", "data.private is a list"),
        ("nothing.new=3", "nothing: unknown"),
        ("privacy.epsilon=1 2", "'1 2' is a text; expected number"),
        ("privacy.units=" + "9" * 5000, "privacy.units"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, words: str) -> None:
    (tmp_path / "c.toml").write_text(to_toml(rich_tree()), "utf-8")
    with pytest.raises(UsageError, match=words):
        load_config(tmp_path / "c.toml", [override])


# --- refusals ----------------------------------------------------------------------------------------------------


def names_of(tree: dict[str, Any], path: tuple[str, ...]) -> set[str]:
    """The known keys of the table at ``path``."""
    node = at(config_to_tree(config_from_tree(tree)), path)
    return set(node)


FREE = ("args",)
"""Tables that take any key: they are handed to the factory."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_unknown_key_anywhere_is_refused_with_a_known_one(data: st.DataObject) -> None:
    tree = rich_tree()
    path = data.draw(st.sampled_from([path for path in paths(tree) if not set(path) & set(FREE)]))
    known = names_of(rich_tree(), path)
    kinds = st.text(max_size=12) | st.sampled_from(sorted(known)).map(lambda name: name + "s")
    key = data.draw(kinds.filter(lambda name: name not in known))
    at(tree, path)[key] = data.draw(st.sampled_from([1, "x", [], {}]))
    with pytest.raises(UsageError) as caught:
        config_from_tree(tree)
    message = str(caught.value)
    assert "unknown; the nearest known key is " in message
    assert message.rsplit(" ", 1)[1].split(".")[-1] in known


def read_or_refused(read: Callable[[], Config]) -> Config | UsageError:
    """What ``read`` returns, or its refusal. Any other exception is a failure."""
    try:
        return read()
    except UsageError as error:
        return error


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_is_taken_or_refused_in_one_line(data: st.DataObject) -> None:
    """No other exception leaves the reader, whatever the value; and what is taken survives the round trip."""
    tree = rich_tree()
    path = data.draw(st.sampled_from([path for path in paths(tree) if path]))
    node = at(tree, path)
    key = data.draw(st.sampled_from(sorted(names_of(rich_tree(), path)))) if isinstance(node, dict) else "0"
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    huge = st.sampled_from([10**400, -(10**400), 2**63, 2**64, -1, 0, math.inf, -math.inf, math.nan, 1e308, 5e-324])
    lists = st.lists(scalars | st.lists(scalars, max_size=3), max_size=3)
    node[key] = data.draw(scalars | huge | lists | st.dictionaries(st.text(max_size=3), scalars, max_size=2))
    read = read_or_refused(lambda: config_from_tree(tree, Path("/base")))
    if isinstance(read, DistqexpError):
        assert read.exit_code == 2
        assert "config key" in str(read)
    else:
        assert config_from_tree(config_to_tree(read)) == read or key == "args"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_as_an_override(text: str) -> None:
    read = read_or_refused(lambda: load_config(None, [text]))
    assert isinstance(read, Config) or "--set" in str(read) or "config key" in str(read)


MISSING = ["model.factory", "model.loss", "data.private", "data.population", "privacy.epsilon", "privacy.delta",
           "privacy.units", "model", "data", "privacy"]  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_a_required_key_is_named(name: str) -> None:
    tree = table_tree()
    *above, last = name.split(".")
    del at(tree, tuple(above))[last]
    with pytest.raises(UsageError, match=re.escape(f"config key {name}: missing; expected")):
        config_from_tree(tree)


def test_keys_that_are_missing_together_are_named_together() -> None:
    tree = table_tree(privacy={"epsilon": 1.0})
    del tree["privacy"]["delta"], tree["privacy"]["units"]
    with pytest.raises(UsageError, match=r"config key privacy\.delta: missing; .*; privacy\.units is missing too$"):
        config_from_tree(tree)


BAD_VALUES = [
    ("privacy.delta", 1.0, "from 0 to below 1"),
    ("privacy.delta", 5e-324, "1e-300 or more"),
    ("privacy.epsilon", 1e300, "at most 10000"),
    ("privacy.units", 0, "1 to 2"),
    ("model.factory", "logistic", "package.module:function"),
    ("model.pretrain.optimiser", "adamw", "adam, sgd or lbfgs"),
    ("model.pretrain.seed", -1, "0 to 2"),
    ("model.pretrain.learning_rate", math.inf, "above 0"),
    ("model.pretrain.weight_decay", math.nan, "0 or more"),
    ("subspace.k", 0, "1 or more"),
    ("precision.damping", -0.1, "0 or more"),
    ("precision.source", "private", "public"),
    ("mechanism.rounds", 0, "1 or more"),
    ("mechanism.step", 0.0, "above 0"),
    ("mechanism.clip", -2.0, "above 0"),
    ("mechanism.grid", -2000, "-500 to 450"),
    ("engine.micro_batch", 0, "1 or more"),
    ("engine.threads", 0, "1 to 1024"),
    ("engine.device", "tpu", "cpu or cuda"),
    ("data.public.rows", [[5, 5]], "first < last"),
    ("data.public.rotate", math.nan, "degrees"),
    ("data.public.columns.missing_flag_above", 1.0, "below 1"),
    ("data.public.columns.winsorise_above", 0.0, "above 0"),
    ("data.population", "  ", "a name"),
    ("data.private.0.shard", "a/b", "letters, digits"),
    ("data.private.0.shard", "south", "a different name for every shard"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD_VALUES, ids=[f"{case[0]}={case[1]}" for case in BAD_VALUES])
def test_values_out_of_range(name: str, value: Any, words: str) -> None:
    tree = rich_tree()
    *above, last = name.split(".")
    at(tree, tuple(above))[last] = value
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        config_from_tree(tree)
    assert "config key " + name.replace(".0", "") in str(caught.value)


def test_parts_that_need_public_data() -> None:
    for change, words in (
        ({"precision": {"kind": "dense"}}, "data.public for the curvature"),
        ({"mechanism": {"clip_quantile": 0.5}, "precision": {"kind": "identity"}}, "data.public, or mechanism.clip"),
        ({"precision": {"kind": "identity"}}, "public data to pretrain on"),
    ):
        tree = table_tree()
        del tree["data"]["public"]
        if "pretrain on" not in words:
            del tree["model"]["pretrain"]
        tree |= change
        with pytest.raises(UsageError, match=words):
            config_from_tree(tree)


def test_toml_dates_are_no_values() -> None:
    tree = table_tree()
    tree["data"]["population"] = tomllib.loads("day = 2024-05-01")["day"]
    with pytest.raises(UsageError, match="date"):
        config_from_tree(tree)


def three_sites(**mechanism: Any) -> dict[str, Any]:
    tree = table_tree(mechanism={"tolerated_sites": 1, **mechanism})
    tree["data"]["private"] = [table_source(None, shard=name) for name in ("north", "south", "east")]
    return tree


@pytest.mark.parametrize(
    ("mechanism", "privacy", "message"),
    [
        ({"tolerated_sites": 3}, {}, "mechanism.tolerated_sites: found 3; expected fewer than the 3"),
        ({"tolerated_sites": -1}, {}, "mechanism.tolerated_sites: found -1; expected 0 or more"),
        ({"noise": "gaussian"}, {}, "mechanism.noise: found 'gaussian'; expected discrete"),
        ({"noise": "gaussian", "trust_radius": 1.0}, {}, "mechanism.trust_radius: found 1.0; expected none"),
        ({"noise": "gaussian", "trust_radius": 1.0, "curvature": "private"}, {}, "expected none with mechanism.tol"),
        ({"rounds": 2, "parts": 2}, {}, "mechanism.parts: found 2; expected 1"),
        ({}, {"delta": 0.0}, "privacy.delta"),
    ],
)
def test_noise_in_shares_is_refused_where_it_can_not_be(
    mechanism: dict[str, Any], privacy: dict[str, Any], message: str
) -> None:
    tree = three_sites(**mechanism)
    tree["privacy"] |= privacy
    with pytest.raises(UsageError, match=re.escape(message)):
        config_from_tree(tree)


def test_a_plan_without_noise_in_shares_does_not_name_it() -> None:
    with_shares = config_from_tree(three_sites())
    assert (with_shares.noise_shares, with_shares.noise_excess) == (2, 1.5)
    assert config_to_tree(with_shares)["mechanism"]["tolerated_sites"] == 1
    without = config_from_tree(three_sites(tolerated_sites=0))
    assert (without.noise_shares, without.noise_excess) == (1, 1.0)
    assert "tolerated_sites" not in config_to_tree(without)["mechanism"]
