"""What every registered strategy must do. A new strategy is tested by this once its line is in ``STRATEGIES``."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import STRATEGIES, Strategy, build_strategy
from retrieval_bench.training.loop import Training
from tests.strategies.page import PAGE, cells, line_of, table
from tests.training.helpers import (
    OPTIONS,
    Data,
    differing,
    embedder_for,
    make_training,
    random_images,
    run_config,
    state_of,
)

pytestmark = pytest.mark.parametrize("name", STRATEGIES)


@dataclass
class Outcome:
    """Five epochs under one strategy: the state after `prepare`, after training, and the model as deployed; what was
    trainable are the parameters by name as in the state, before ``finalize``."""

    training: Training
    prepared: dict[str, Tensor]
    trained: dict[str, Tensor]
    trainable: dict[str, nn.Parameter]
    embeddings: Tensor
    finished: Embedder


def eval_embeddings(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(random_images(6, seed=3))


def train(data: Data, name: str, dim: int = 0) -> Outcome:
    """`dim` = 0 leaves `frozen` nothing to train. Proxies do not move: only the network can lower the loss. With an
    embedding layer one epoch more, since norms that are trained later than it first raise the loss."""
    strategy = build_strategy(name, OPTIONS)
    training = make_training(data, strategy, run_config(loss_lr=0.0, epochs=6 if dim else 5), embedder_for(name, dim))
    prepared = state_of(training.model)
    seen: dict[str, Any] = {}
    finalize = strategy.finalize

    def observed(model: Embedder) -> Embedder:
        named = {f"0.{name}": value for name, value in model.named_parameters() if value.requires_grad}
        seen.update(state=state_of(model), trainable=named, embeddings=eval_embeddings(model))
        return finalize(model)

    strategy.finalize = observed
    finished = training.fit()
    return Outcome(training, prepared, seen["state"], seen["trainable"], seen["embeddings"], finished)


OUTCOMES: dict[str, Outcome] = {}


@pytest.fixture
def outcome(name: str, synthetic: Data) -> Outcome:
    """Each strategy is trained once; the tests read the outcome and do not change it."""
    if name not in OUTCOMES:
        OUTCOMES[name] = train(synthetic, name)
    return OUTCOMES[name]


def test_groups_cover_every_trainable_parameter_exactly_once(outcome: Outcome) -> None:
    training = outcome.training
    grouped = [id(parameter) for group in training.optimizer.param_groups for parameter in group["params"]]
    of_loss = [value for value in training.criterion.parameters() if value.requires_grad]
    trained = [*outcome.trainable.values(), *of_loss]
    assert sorted(grouped) == sorted(map(id, trained))
    names = [group["name"] for group in training.optimizer.param_groups]
    assert len(set(names)) == len(names)
    assert "loss" in names


def test_loss_falls(outcome: Outcome) -> None:
    """If anything of the backbone is trained; otherwise no image may have been seen."""
    training = outcome.training
    if outcome.trainable:
        assert training.history[-1] < training.history[0]
        assert training.images_seen >= 2 * 64
    else:
        assert (training.images_seen, training.history) == (0, [])


def test_frozen_parameters_and_statistics_do_not_change(outcome: Outcome) -> None:
    changed = differing(outcome.prepared, outcome.trained)
    trainable = outcome.trainable.keys()
    parameters = {f"0.{name}" for name, _ in outcome.training.model.named_parameters()}
    assert changed & parameters <= trainable
    assert bool(changed & trainable) == bool(trainable)
    backbone = outcome.training.model.backbone
    for block in backbone.body:
        if not any(parameter.requires_grad for parameter in backbone.block_parameters(block)):
            assert not [entry for entry in changed if entry.startswith(f"0.backbone.net.{block.name}.")]


def test_same_seed_gives_the_same_bits(name: str, outcome: Outcome, synthetic: Data) -> None:
    torch.manual_seed(123)
    again = train(synthetic, name)
    assert not differing(outcome.trained, again.trained)
    assert not differing(state_of(outcome.finished), state_of(again.finished))
    assert outcome.training.history == again.training.history


def test_finalize_keeps_the_embeddings_and_info_is_json(name: str, outcome: Outcome) -> None:
    """But for averages of weights, which have tests of their own."""
    if not STRATEGIES[name].averages:
        torch.testing.assert_close(eval_embeddings(outcome.finished), outcome.embeddings, rtol=1e-4, atol=1e-5)
    info = outcome.training.strategy.info()
    assert json.loads(json.dumps(info, allow_nan=False)) == info


def test_the_page_of_strategies_is_up_to_date(name: str, outcome: Outcome) -> None:
    """``make strategies-page`` writes it. Passes that hang on measurements may differ from machine to machine."""
    rows = [cells(row) for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows] == [f"`{other}`" for other in STRATEGIES]
    own = cells(table([line_of(name, outcome.training, outcome.finished)]).splitlines()[-1])
    written = rows[list(STRATEGIES).index(name)]
    if STRATEGIES[name].run_epoch is not Strategy.run_epoch:
        own[5] = written[5]
    assert own == written


def test_embedding_layer_is_trained_with_it(name: str, synthetic: Data) -> None:
    outcome = train(synthetic, name, dim=8)
    assert {"0.embedding.weight", "0.embedding.bias"} <= differing(outcome.prepared, outcome.trained)
    assert outcome.embeddings.shape == eval_embeddings(outcome.finished).shape == (6, 8)
    assert outcome.training.history[-1] < outcome.training.history[0]


def test_file_is_documented_and_short_and_the_look_is_its_own(name: str) -> None:
    """A strategy is one file that is read in one sitting, and says what it implements."""
    kind = STRATEGIES[name]
    module = inspect.getmodule(kind)
    assert module is not None
    assert module.__doc__
    assert kind.__doc__
    assert len(Path(inspect.getfile(kind)).read_text(encoding="utf-8").splitlines()) <= 260
    assert re.fullmatch("#[0-9a-f]{6}", kind.look.colour)
    assert [other.look for other in STRATEGIES.values()].count(kind.look) == 1
    assert kind.look != Strategy.look
