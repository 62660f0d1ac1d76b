"""Every loss and miner by name, and the softmax loss with its two heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.losses import LOSSES, MINERS
from retrieval_bench.models.classifier import SoftmaxLoss, autolr_head
from retrieval_bench.sections import LossConfig
from retrieval_bench.training.criterion import Criterion, build_criterion

CLASSES, DIM = 4, 16


def criterion(
    loss: str, miner: str = "default", head: str = "linear", options: dict[str, float] | None = None
) -> Criterion:
    torch.manual_seed(0)
    config = LossConfig(loss=loss, miner=miner, head=head, loss_options=tuple((options or {}).items()))  # pyright: ignore[reportArgumentType]
    return build_criterion(config, CLASSES, DIM)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings (16, 16) of varied length, that require gradients, and 4 of each of 4 labels."""
    embeddings = (
        torch.randn(16, DIM, generator=torch.Generator().manual_seed(seed)) * torch.linspace(0.5, 3, 16)[:, None]
    )
    return embeddings.requires_grad_(), torch.arange(CLASSES).repeat_interleave(4)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_a_finite_scalar_with_gradient(name: str) -> None:
    embeddings, labels = batch()
    value = criterion(name, "none")(embeddings, labels)
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert embeddings.grad is not None
    assert torch.isfinite(embeddings.grad).all()
    assert (embeddings.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_few_steps_on_the_embeddings_lower_the_loss(name: str) -> None:
    """Only the embeddings move, so the loss's own parameters cannot be what lowers it."""
    loss = criterion(name, "none").requires_grad_(False)
    embeddings, labels = batch()
    optimizer = torch.optim.Adam([embeddings], lr=0.05)
    first = loss(embeddings, labels).item()
    for _ in range(10):
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        optimizer.step()
    assert loss(embeddings, labels).item() < 0.95 * first


@pytest.mark.parametrize("name", LOSSES)
def test_own_parameters_receive_gradients(name: str) -> None:
    loss = criterion(name)
    loss(*batch()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert bool(list(loss.parameters())) != LOSSES[name].needs_pairs


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_option_gives_one_line(name: str) -> None:
    with pytest.raises(UserError, match="--loss-options") as caught:
        criterion(name, options={"no_such_option": 1.0})
    assert name in str(caught.value)
    assert "no_such_option" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"label_smoothing": 2.0}, {"label_smoothing": -0.1}])
def test_option_out_of_range_is_refused_before_training(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="label_smoothing"):
        criterion("softmax", options=options)


def test_options_reach_the_loss() -> None:
    def triplet(margin: float) -> float:
        return criterion("triplet", "none", options={"margin": margin})(*batch()).item()

    assert triplet(0.5) > triplet(0.2) == criterion("triplet", "none")(*batch()).item()


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_pairs])
def test_length_of_embeddings_does_not_matter_to_losses_of_pairs(name: str) -> None:
    embeddings, labels = batch()
    torch.testing.assert_close(
        criterion(name, "none")(embeddings * 7, labels), criterion(name, "none")(embeddings, labels)
    )


@pytest.mark.parametrize("name", MINERS)
def test_miner_chooses_triplets_of_its_kind(name: str) -> None:
    """With any miner the triplet loss has a gradient, and differs from that over all triplets."""
    embeddings, labels = batch()
    torch.manual_seed(1)
    mined = criterion("triplet", name)(embeddings, labels)
    mined.backward()
    assert torch.isfinite(mined)
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    assert not torch.isclose(mined, criterion("triplet", "none")(embeddings, labels))


@pytest.mark.parametrize("name", MINERS)
def test_miner_reads_only_the_generator_that_the_training_seeds(name: str) -> None:
    embeddings, labels = batch()
    values = []
    for numpy_seed in (0, 1):
        np.random.seed(numpy_seed)  # noqa: NPY002
        miner = criterion("triplet", name)
        torch.manual_seed(1)
        values.append(miner(embeddings, labels))
    assert torch.equal(values[0], values[1])


def test_hardest_triplets_cost_more_than_semihard_ones() -> None:
    hard, semihard = (criterion("triplet", name)(*batch()) for name in ("hard", "semihard"))
    assert hard > semihard


def test_default_miner_is_the_usual_one_of_the_loss_and_none_is_none() -> None:
    assert criterion("triplet", "none").miner is None
    assert criterion("proxy_anchor").miner is None
    for name in ("triplet", "multi_similarity"):
        embeddings, labels = batch()
        assert torch.equal(criterion(name)(embeddings, labels), criterion(name, LOSSES[name].miner)(embeddings, labels))


@pytest.mark.parametrize("classes", [1, 100])
def test_autolr_head_has_the_documented_size(classes: int) -> None:
    assert sum(parameter.numel() for parameter in autolr_head(classes, 2048).parameters()) == 1_050_112 + 513 * classes


def test_autolr_head_has_the_documented_initialisation() -> None:
    torch.manual_seed(0)
    bottleneck, norm, activation, dropout, classifier = autolr_head(100, 2048)
    assert isinstance(bottleneck, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(classifier, nn.Linear)
    assert bottleneck.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)  # fan out
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.005)
    assert norm.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert not any(layer.bias.any() for layer in (bottleneck, norm, classifier))
    assert activation(torch.tensor(-1.0)).item() == pytest.approx(-0.1)
    assert isinstance(dropout, nn.Dropout)
    assert dropout.p == 0.5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_softmax_is_cross_entropy_of_its_layer(smoothing: float) -> None:
    embeddings, labels = batch()
    loss = SoftmaxLoss(CLASSES, DIM, label_smoothing=smoothing)
    assert isinstance(loss.head, nn.Linear)
    logits = embeddings @ loss.head.weight.T + loss.head.bias
    log_share = logits - logits.logsumexp(1, keepdim=True)
    expected = -((1 - smoothing) * log_share[torch.arange(16), labels] + smoothing * log_share.mean(1)).mean()
    torch.testing.assert_close(loss(embeddings, labels), expected)


def test_softmax_uses_the_head_of_the_configuration() -> None:
    sizes = {
        head: sum(parameter.numel() for parameter in criterion("softmax", head=head).parameters())
        for head in ("linear", "autolr")
    }
    assert sizes == {"linear": (DIM + 1) * CLASSES, "autolr": (DIM + 1) * 512 + 1024 + 513 * CLASSES}
