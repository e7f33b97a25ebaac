"""Views of images: whose mean gradient a record's is, what they depend on, and that the sums know nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from layers_harness import CrossEntropy, clipped_sum, fast, relative_error, slow_vectors, whitening_for
from small_runs import exact_norm
from torch import nn

from distqexp.api import load_config
from distqexp.artefacts.plan import Plan
from distqexp.config import Config, config_from_tree, config_to_tree
from distqexp.engines.serial import SerialEngine
from distqexp.errors import UsageError
from distqexp.geometry.subspaces import make_subspace
from distqexp.geometry.whitening import Whitening
from distqexp.gradients.autodiff import UnitGradients
from distqexp.gradients.context import RoundContext
from distqexp.gradients.layers import block_layout
from distqexp.problem.dataset import open_dataset
from distqexp.problem.images import Views, rotate_images, with_views
from distqexp.problem.network import Network
from distqexp.problem.records import Records
from distqexp.sketching.choice import sketcher_of
from distqexp.sketching.sketcher import BatchSketcher
from distqexp.stages.plan import make_plan
from distqexp.stages.shards import open_shards

VIEWS = 3


def some_network(kind: str) -> tuple[Network, tuple[int, ...], int]:
    """A float64 network, the shape of its records, and how many tokens it knows (0: it takes numbers)."""
    torch.manual_seed(0)
    modules: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
        "convolution": (
            nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 3)), (2, 6, 6), 0
        ),
        "sequence": (nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Flatten(), nn.Linear(28, 3)), (7, 5), 0),
        "tokens": (nn.Sequential(nn.Embedding(1100, 4), nn.Flatten(), nn.Linear(20, 3)), (5,), 1100),
    }  # fmt: skip
    module, shape, vocabulary = modules[kind]
    return Network(module.double(), ("*",)), shape, vocabulary


def some_records(shape: tuple[int, ...], vocabulary: int, count: int) -> tuple[Records, Records]:
    """Records in VIEWS views each, and the same views as records of their own."""
    generator = torch.Generator().manual_seed(5)
    if vocabulary:
        inputs = torch.randint(vocabulary, (count, VIEWS, *shape), generator=generator)
    else:
        inputs = torch.randn((count, VIEWS, *shape), generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (count,), generator=generator)
    present = torch.ones(count, dtype=torch.bool)
    flat = Records(inputs.flatten(0, 1), targets.repeat_interleave(VIEWS), present.repeat_interleave(VIEWS))
    return Records(inputs, targets, present, VIEWS), flat


@pytest.mark.parametrize("kind", ["convolution", "sequence", "tokens"])
def test_a_record_counts_as_the_mean_of_its_views(kind: str) -> None:
    network, shape, vocabulary = some_network(kind)
    records, flat = some_records(shape, vocabulary, 5)
    whitening = whitening_for(block_layout(network), 4)
    expected = slow_vectors(network, CrossEntropy(), whitening, flat).reshape(5, VIEWS, -1).mean(dim=1)
    gradients = fast(network, CrossEntropy(), whitening, 6)
    vectors, finite = gradients.of_piece([(records, np.arange(5))])
    assert finite.all()
    assert relative_error(torch.from_numpy(vectors), expected) < 1e-9
    norms = torch.linalg.vector_norm(expected, dim=1)
    clip = float(norms.median())
    total = torch.from_numpy(clipped_sum(gradients, records, clip, 1e6))
    clipped = ((clip / norms).clamp(max=1.0)[:, None] * expected).sum(dim=0)
    assert torch.linalg.vector_norm(total - clipped) < 1e-9 * clip


def test_the_general_way_takes_the_mean_of_views_too() -> None:
    network, shape, _ = some_network("convolution")
    records, flat = some_records(shape, 0, 4)
    subspace = make_subspace("identity", network.d, network.d, seed=0, round=0, nonzeros=1)

    def gradients(micro_batch: int) -> UnitGradients:
        return UnitGradients(
            network=network, loss=CrossEntropy(), whitening=Whitening(subspace),
            micro_batch=micro_batch,
        )  # fmt: skip

    found, _ = gradients(5).of_piece([(records, np.arange(4))])
    alone, _ = gradients(12).of_piece([(flat, np.arange(12))])
    assert np.allclose(found, alone.reshape(4, VIEWS, -1).mean(axis=1), rtol=1e-12, atol=1e-15)
    rows, each = gradients(5).curvature_factors(records), gradients(12).curvature_factors(flat)
    gram = rows.transpose(1, 2) @ rows
    expected = (each.transpose(1, 2) @ each).reshape(4, VIEWS, network.d, network.d).mean(dim=1)
    assert torch.allclose(gram, expected, rtol=1e-10, atol=1e-15)


def test_a_view_that_is_not_finite_takes_the_whole_record_out() -> None:
    network, shape, _ = some_network("convolution")
    records, _ = some_records(shape, 0, 4)
    spoiled = replace(records, inputs=records.inputs.clone())
    spoiled.inputs[2, 1, 0, 0, 0] = float("inf")
    gone = replace(records, present=torch.tensor([True, True, False, True]))
    gradients = fast(network, CrossEntropy(), whitening_for(block_layout(network), 4), 4)
    assert (clipped_sum(gradients, spoiled, 0.5, 1e6) == clipped_sum(gradients, gone, 0.5, 1e6)).all()
    assert gradients.of_piece([(spoiled, np.arange(4))])[1].tolist() == [True, True, False, True]


def test_views_depend_on_seed_round_and_row_alone() -> None:
    rows = np.array([3, 900, 4])
    views = Views(4, 10.0, 2.0, seed=7, round=2)
    moves = views.of_rows(rows)
    assert moves.shape == (3, 4, 3)
    assert (views.of_rows(rows[::-1]) == moves[::-1]).all()
    assert (views.of_rows(rows[1:2])[0] == moves[1]).all()
    for other in (replace(views, seed=8), replace(views, round=3)):
        assert (other.of_rows(rows) != moves).all()
    many = replace(views, count=1).of_rows(np.arange(4000))[:, 0]
    # Uniform: the mean of 4,000 is within 5 of its standard deviations (false-alarm rate 2e-6 for all three: seeded).
    assert (np.abs(many.mean(axis=0)) < 5 * np.array([10, 2, 2]) / np.sqrt(3 * 4000)).all()
    assert (np.abs(many).max(axis=0) <= [10, 2, 2]).all()
    assert (np.abs(many).max(axis=0) > [9.9, 1.98, 1.98]).all()


def test_a_view_is_turned_counter_clockwise_and_then_moved() -> None:
    images = np.zeros((2, 1, 9, 11))
    images[:, 0, 2:5, 3:9] = np.arange(18).reshape(3, 6)
    records = Records(torch.from_numpy(images), torch.zeros(2), torch.ones(2, dtype=torch.bool))

    class Given(Views):
        def of_rows(self, rows: np.ndarray) -> np.ndarray:
            return np.array([[[20.0, 0.0, 0.0], [0.0, 2.0, -3.0]]] * 2)

    found = with_views(records, np.arange(2), Given(2, 0.0, 0.0, 0, 0))
    assert found.views == 2
    assert found.inputs.shape == (2, 2, 1, 9, 11)
    assert np.abs(found.inputs[:, 0].numpy() - rotate_images(images, 20.0)).max() < 1e-12
    moved = np.zeros_like(images)
    moved[:, :, 2:, :-3] = images[:, :, :-2, 3:]
    assert (found.inputs[:, 1].numpy() == moved).all()


def digits(**augment: object) -> Config:
    """The embedded task, small, layer by layer, with views."""
    tree = config_to_tree(load_config(None))
    tree["data"]["private"][0]["rows"] = [[1000, 1060]]
    tree["data"]["public"]["rows"] = [[0, 200]]
    tree["privacy"]["units"] = 60
    tree["subspace"] = {"kind": "identity"}
    tree["precision"] |= {"kind": "kronecker", "samples": 100}
    tree["mechanism"] = {"rounds": 1, "clip_natural": 1.0}
    tree["engine"] |= {"micro_batch": 16, "kind": "serial"}
    tree["augment"] = augment
    return config_from_tree(tree)


def sums_of(plan: Plan, config: Config) -> np.ndarray:
    with SerialEngine() as engine:
        sources, _ = open_shards(plan, config.data.private, engine)
    context = RoundContext.of_state(plan, plan.state, sources)
    sketcher = sketcher_of(context, plan.state)
    assert isinstance(sketcher, BatchSketcher)
    return sum(sketcher.sketch(context.batches(piece)) for piece in range(len(context.pieces)))


def test_a_unit_in_views_moves_the_integers_by_at_most_the_sensitivity(tmp_path: Path) -> None:
    config = digits(views=3, rotate=15.0, shift=1.0)
    with SerialEngine() as engine:
        plan = make_plan(config, engine)
    whole = sums_of(plan, config)
    moves = []
    for row in range(1000, 1060, 6):
        np.save(tmp_path / "blank.npy", np.arange(1797) == row)
        data = replace(config.data.private[0], blank=str(tmp_path / "blank.npy"))
        blanked = replace(config, data=replace(config.data, private=(data,)))
        moves.append(exact_norm(whole - sums_of(plan, blanked)))
    assert max(moves) <= plan.state.grid.sensitivity**2
    assert max(moves) > (0.98 * plan.state.grid.clip_integer) ** 2


def test_views_change_the_sums_and_the_rounds_have_their_own() -> None:
    config, plain = digits(views=2, rotate=15.0), digits()
    with SerialEngine() as engine:
        plan, other = make_plan(config, engine), make_plan(plain, engine)
        assert (plan.state.theta == other.state.theta).all()
        assert plan.plan_id != other.plan_id
        assert (sums_of(plan, config) != sums_of(other, plain)).any()
        sources, _ = open_shards(plan, config.data.private, engine)
    batches = []
    for round in (0, 1):
        context = RoundContext.of_state(plan, replace(plan.state, round=round), sources)
        ((records, _),) = list(context.batches(0))
        assert records.views == 2
        batches.append(records.inputs)
    assert (batches[0] != batches[1]).any()
    dataset = open_dataset(config.data.private[0], plan.schema)
    assert dataset.read(np.arange(1000, 1016)).inputs.shape == batches[0][:, 0].shape


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ({"views": 2}, "the views would be the same"),
        ({"views": 0, "rotate": 1.0}, "augment.views: found 0"),
        ({"rotate": -1.0}, "augment.rotate"),
        ({"shift": float("inf")}, "augment.shift"),
    ],
)
def test_bad_views_are_refused(augment: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        digits(**augment)


def test_views_are_refused_where_a_row_moves_or_records_are_no_images(tmp_path: Path) -> None:
    tree = config_to_tree(digits(views=2, shift=1.0))
    tree["privacy"]["adjacency"] = "add-remove"
    with pytest.raises(UsageError, match="none under add-remove"):
        config_from_tree(tree)
    tree["privacy"]["adjacency"] = "zero-out"
    tree["data"]["private"][0] |= {"format": "csv", "path": "x.csv", "columns": {"target": "y"}}
    with pytest.raises(UsageError, match="none but of images"):
        config_from_tree(tree)
