"""Recipes for centres: the bounds of Spack and conda are those of pyproject.toml, and containers and checks can be parsed."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from job_sites import JOBS
from mpi_harness import REPOSITORY

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
SPACK = JOBS / "spack" / "spack_repo" / "distqexp"


def bounds(requirements: list[str]) -> dict[str, str]:
    """Name to specifier, without extras."""
    split = [re.fullmatch(r"([a-z0-9-]+)(?:\[[^]]*\])? ?(.*)", line) for line in requirements]
    return {match[1]: match[2] for match in split if match}


REQUIRED = bounds(PROJECT["dependencies"])
BUILD = bounds(PYPROJECT["build-system"]["requires"])
PYTHON = PROJECT["requires-python"]


# --- conda ---------------------------------------------------------------------------------------------------------


def as_conda(required: dict[str, str]) -> dict[str, str]:
    return {"pytorch" if name == "torch" else name: specifier for name, specifier in required.items()}


def test_condas_recipe_asks_for_what_pyproject_does() -> None:
    recipe = yaml.safe_load((JOBS / "conda" / "recipe.yaml").read_text("utf-8"))
    assert recipe["context"]["version"] == PROJECT["version"]
    assert bounds(recipe["requirements"]["run"]) == {"python": PYTHON, **as_conda(REQUIRED)}
    assert bounds(recipe["requirements"]["run_constraints"]) == bounds(PROJECT["optional-dependencies"]["mpi"])
    assert recipe["build"]["python"]["entry_points"] == [
        f"{name} = {place}" for name, place in PROJECT["scripts"].items()
    ]
    assert recipe["about"]["summary"] == PROJECT["description"]
    assert recipe["about"]["license"] == PROJECT["license"]
    assert bounds(recipe["requirements"]["host"]) == {"python": PYTHON, "pip": "", **BUILD}


def test_condas_environment_asks_for_what_pyproject_does() -> None:
    environment = yaml.safe_load((JOBS / "conda" / "environment.yaml").read_text("utf-8"))
    *lines, last = environment["dependencies"]
    *from_pip, checkout = last["pip"]
    expected = {"python": PYTHON, "pip": "", **as_conda(REQUIRED)}
    expected |= bounds(PROJECT["optional-dependencies"]["mpi-bundled"])
    assert bounds(lines) | bounds(from_pip) == expected
    assert (JOBS / "conda" / checkout / "pyproject.toml").exists()


# --- Spack ---------------------------------------------------------------------------------------------------------


def as_spack(specifier: str) -> str:
    """A range of Spack, whose upper end is included: >=2.8,<2.14 is 2.8:2.13."""
    match = re.fullmatch(r">=([\d.]+),<([\d.]+)", specifier)
    assert match, specifier
    *first, last = match[2].split(".")
    return f"{match[1]}:{'.'.join([*first, str(int(last) - 1)])}"


@contextmanager
def spack_words(found: dict[str, Any]) -> Iterator[None]:
    """The directives of Spack's package language, which write down what they are called with."""

    def depends_on(spec: str, *, when: str = "", **_: Any) -> None:
        name, _, versions = spec.partition("@")
        found["depends"][name] = (versions, when)

    @contextmanager
    def default_args(**_: Any) -> Iterator[None]:
        yield

    words = ModuleType("spack.package")
    words.__dict__.update(
        depends_on=depends_on,
        default_args=default_args,
        version=lambda number, **more: found["versions"].append((number, more)),
        variant=lambda name, **_: found["variants"].append(name),
        license=lambda name: found.update(license=name),
    )
    base = ModuleType("spack_repo.builtin.build_systems.python")
    base.__dict__["PythonPackage"] = type("PythonPackage", (), {})
    with pytest.MonkeyPatch.context() as patch:
        for module in ("spack", "spack_repo", "spack_repo.builtin", "spack_repo.builtin.build_systems"):
            patch.setitem(sys.modules, module, ModuleType(module))
        patch.setitem(sys.modules, words.__name__, words)
        patch.setitem(sys.modules, base.__name__, base)
        yield


def read_package(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"depends": {}, "versions": [], "variants": []}
    with spack_words(found):
        runpy.run_path(str(SPACK / "packages" / name / "package.py"))
    return found


def test_spacks_recipe_asks_for_what_pyproject_does() -> None:
    found = read_package("py_distqexp")
    extras = PROJECT["optional-dependencies"]
    expected = {f"py-{name}": (as_spack(specifier), "") for name, specifier in REQUIRED.items()}
    expected["python"] = (as_spack(PYTHON), "")
    expected["py-setuptools"] = (as_spack(BUILD["setuptools"]), "")
    expected["py-mpi4py"] = (as_spack(bounds(extras["mpi"])["mpi4py"]), "+mpi")
    expected["py-dask"] = (as_spack(bounds(extras["dask"])["dask"]), "+dask")
    expected["py-distributed"] = ("", "+dask")
    assert found["depends"] == expected
    assert [number for number, _ in found["versions"]] == [PROJECT["version"]]
    assert found["license"] == PROJECT["license"]


def test_the_package_that_spack_lacks_is_within_the_bounds() -> None:
    from packaging.specifiers import SpecifierSet

    ((number, more),) = read_package("py_dp_accounting")["versions"]
    assert number in SpecifierSet(REQUIRED["dp-accounting"])
    assert re.fullmatch(r"[0-9a-f]{64}", more["sha256"])


def test_spacks_repository_names_its_space() -> None:
    assert yaml.safe_load((SPACK / "repo.yaml").read_text("utf-8"))["repo"]["namespace"] == "distqexp"


# --- containers ----------------------------------------------------------------------------------------------------

INSTRUCTIONS = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions with their arguments, lines joined."""
    text = (JOBS / "containers" / "Dockerfile").read_text("utf-8")
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def test_the_dockerfile_copies_what_is_there_and_does_not_run_as_root() -> None:
    instructions = dockerfile()
    assert {word for word, _ in instructions} <= INSTRUCTIONS
    for word, rest in instructions:
        if word == "COPY":
            assert all((REPOSITORY / source).exists() for source in rest.split()[:-1])
    assert dict(instructions)["USER"] == "1000"
    check_python(next(rest for word, rest in instructions if word == "ARG").partition("=")[2])


def check_python(version: str) -> None:
    from packaging.specifiers import SpecifierSet

    assert version in SpecifierSet(PYTHON)


@pytest.mark.process
def test_hadolint_finds_nothing() -> None:
    found = shutil.which("hadolint")
    if found is None:
        pytest.skip("no hadolint")
    checked = subprocess.run(
        [found, str(JOBS / "containers" / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "")


SECTIONS = {"arguments", "files", "post", "environment", "test", "runscript", "labels"}


@pytest.mark.process
@pytest.mark.parametrize("model", ["hybrid", "bind"])
def test_the_definitions_have_sections_that_parse(model: str) -> None:
    header, *parts = re.split(r"(?m)^%", (JOBS / "containers" / f"{model}.def").read_text("utf-8"))
    keys = dict(line.split(": ") for line in header.splitlines() if line and not line.startswith("#"))
    assert keys["Bootstrap"] == "docker"
    match = re.fullmatch(r"python:([\d.]+)-slim-bookworm", keys["From"])
    assert match
    check_python(match[1])
    sections = {name: body for name, _, body in (part.partition("\n") for part in parts)}
    assert set(sections) <= SECTIONS
    for line in sections["files"].split("\n"):
        if line.strip():
            assert (REPOSITORY / line.split()[0]).exists()
    for name in ("post", "environment", "test", "runscript"):
        body = re.sub(r"\{\{ (\w+) \}\}", r"\1", sections[name])
        parsed = subprocess.run(["sh", "-n"], input=body, capture_output=True, text=True, check=False)
        assert (parsed.returncode, parsed.stderr) == (0, "")
    # In the hybrid model mpi4py is built for the image's MPI, in the other its wheel finds the host's.
    assert ("--no-binary mpi4py" in sections["post"]) == (model == "hybrid")
    assert ("/host/mpi" in sections["environment"]) == (model == "bind")


@pytest.mark.process
def test_python_in_an_image_sees_the_folders_of_the_job(tmp_path: Path) -> None:
    stub = tmp_path / "apptainer"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', "utf-8")
    stub.chmod(0o755)
    environ = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "IMAGE": "image.sif", "MPI_HOME": "/opt/mpi"}
    environ |= {"DISTQEXP_LEDGER": str(tmp_path / "ledger.sqlite"), "DISTQEXP_DATA": "/data", "TMPDIR": "/scratch"}
    command = [str(JOBS / "containers" / "python"), "-m", "distqexp.fit", "a config.toml"]
    words = subprocess.run(
        command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    binds = [words[place + 1] for place, word in enumerate(words) if word == "--bind"]
    assert binds == [str(tmp_path), "/opt/mpi:/host/mpi", "/data", str(tmp_path), "/scratch"]
    assert words[-5:] == ["image.sif", "python", "-m", "distqexp.fit", "a config.toml"]


# --- ReFrame -------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_reframes_checks_compile_and_are_listed_where_it_is_installed() -> None:
    checks = JOBS / "reframe" / "distqexp_checks.py"
    compile(checks.read_text("utf-8"), str(checks), "exec")
    found = shutil.which("reframe")
    if found is None:
        return
    listed = subprocess.run([found, "-c", str(checks), "-l"], capture_output=True, text=True, check=True).stdout
    assert "Found 6 check(s)" in listed
