"""The certificate holds every field of its contract, and says loudly when there is no privacy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_files import certificate

from distqexp.report.certificate import certificate_bytes, rounded_up, write_certificate


def test_every_field_of_the_contract() -> None:
    tree = certificate()
    assert {
        "epsilon", "delta", "mu", "rho", "adjacency", "unit", "units", "rounds", "parts", "noise", "mechanism",
        "subspace", "precision", "plan_id", "ledger", "model_sha256", "versions", "not_covered",
    } <= tree.keys()  # fmt: skip
    assert all({"round", "part", "mu", "clip", "temperature", "halvings"} <= entry.keys() for entry in tree["rounds"])
    assert tree["private"] is True
    assert tree["statement"].startswith("The released parameters are (0.99, 1e-05)-")
    assert [rounded_up(figure) for figure in (1.2345670000001, 0.99988, 1e-5, 3e-7, 12345678.0)] == [
        "1.23457", "0.99988", "1e-05", "3e-07", "1.23457e+07",
    ]  # fmt: skip
    covered = " ".join(tree["not_covered"])
    assert all(word in covered for word in ("evaluation metrics", "timing", "counts", "m times mu"))


def test_a_seeded_run_is_not_private() -> None:
    tree = certificate(noise_seed=3)
    assert tree["private"] is False
    assert tree["statement"].startswith("NOT PRIVATE")
    assert tree["noise_seed"] == 3
    assert b"NOT PRIVATE" in certificate_bytes(tree)


def test_idealised_arithmetic_and_private_evaluation_are_said() -> None:
    tree = certificate(arithmetic="idealised float64", evaluation_private=True, adjacency="add-remove", rho=None)
    covered = " ".join(tree["not_covered"])
    assert "rounding errors" in covered
    assert "private records" in covered
    assert "none is released" in covered
    assert "rounding errors" not in " ".join(certificate()["not_covered"])


def test_what_is_drawn_is_on_the_grid_and_its_slack_is_said() -> None:
    exact, rounded, point = (
        certificate(noise=noise, sampler_slack=slack)["noise"]
        for noise, slack in (("discrete", 0.0), ("gaussian", 0.0), ("gaussian", 3e-9))
    )
    assert all(noise["rounded_to_grid"] is True for noise in (exact, rounded, point))
    assert [noise["sampler_slack"] for noise in (exact, rounded, point)] == [0.0, 0.0, 3e-9]
    assert "exactly" in exact["meaning"]
    assert "rounded to whole grid steps, exactly" in rounded["meaning"]
    assert "of ideal arithmetic" in point["meaning"]
    assert "don't include" in point["meaning"]


def test_the_file_is_sorted_json_with_exact_floats(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    write_certificate(path, certificate(epsilon=0.1 + 0.2))
    text = path.read_text()
    assert json.loads(text)["epsilon"] == 0.1 + 0.2
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        certificate_bytes(certificate(mu=float("nan")))
