"""Every loss and miner by name, and the softmax loss with its two heads."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor, nn

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.losses import LOSSES, MINERS, REFUSED, Criterion, SoftmaxLoss, autolr_head, build_criterion
from retrieval_bench.sections import LossConfig
from retrieval_bench.validation import validate

CLASSES, DIM = 4, 16
SHORT = [name for name in LOSSES if name.islower()]
CLASS_NAMES = {
    kind: [name for name, found in vars(module).items() if inspect.isclass(found)]
    for kind, module in (("loss", losses), ("miner", miners))
}
"""Of all of the library."""


def criterion(loss: str, miner: str = "default", head: Any = "linear", **options: Any) -> Criterion:
    torch.manual_seed(0)
    config = LossConfig(loss=loss, miner=miner, head=head, loss_options=tuple(options.items()))
    return build_criterion(config, CLASSES, DIM)


def batch() -> tuple[Tensor, Tensor]:
    """Embeddings (16, 16) of varied length, that require gradients, and 4 of each of 4 labels."""
    embeddings = torch.randn(16, DIM, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 3, 16)[:, None]
    return embeddings.requires_grad_(), torch.arange(CLASSES).repeat_interleave(4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASS_NAMES["loss"])
def test_every_loss_of_the_library_learns_or_is_refused_by_name(name: str) -> None:
    """Two steps, since some hold on to what they have seen; gradients are finite and not all zero."""
    config = RunConfig().changed(loss__loss=name)
    if name in REFUSED:
        with pytest.raises(UserError, match=rf"^--loss {name}: this class "):
            validate(config)
        return
    validate(config)
    loss, (embeddings, labels) = criterion(name), batch()
    optimizer = torch.optim.SGD([embeddings, *loss.parameters()], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(embeddings, labels)
        value.backward()
        assert value.isfinite()
        assert value.shape == ()
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        assert embeddings.grad is not None
        assert embeddings.grad.abs().sum() > 0
        optimizer.step()
    assert bool(list(loss.parameters())) == (not LOSSES[name].needs_pairs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLASS_NAMES["miner"])
def test_every_miner_of_the_library_mines_or_is_refused_by_name(name: str) -> None:
    config = RunConfig().changed(loss__loss="triplet", loss__miner=name)
    if name in REFUSED:
        with pytest.raises(UserError, match=rf"^--miner {name}: this class "):
            validate(config)
        return
    validate(config)
    embeddings, labels = batch()
    for loss in ("TripletMarginLoss", "ContrastiveLoss", "MarginLoss"):
        value = criterion(loss, name)(embeddings, labels)
        assert value.isfinite()
        value.backward()


def test_names_that_are_refused_are_those_of_the_library() -> None:
    assert REFUSED.keys() <= {name for names in CLASS_NAMES.values() for name in names}


def test_options_are_numbers_words_and_objects_of_the_library() -> None:
    whole = criterion("SoftTripleLoss", centers_per_class=3.0).loss
    assert whole.fc.shape == (DIM, 3 * CLASSES)
    assert isinstance(
        criterion("ContrastiveLoss", distance="CosineSimilarity").loss.distance, distances.CosineSimilarity
    )
    assert criterion("MarginLoss", learn_beta="True").loss.beta.requires_grad
    options = (("type_of_triplets", "easy"), ("margin", 0.3))
    built = build_criterion(LossConfig(loss="triplet", miner="hard", miner_options=options), CLASSES, DIM)
    assert isinstance(built.miner, miners.TripletMarginMiner)
    assert (built.miner.type_of_triplets, built.miner.margin) == ("easy", 0.3)
    with pytest.raises(UserError, match=r"^--miner-options \{'x': 1\}: BatchHardMiner refuses them"):
        build_criterion(LossConfig(loss="triplet", miner="BatchHardMiner", miner_options=(("x", 1),)), CLASSES, DIM)


def test_a_loss_that_takes_no_mined_pairs_is_one_line_and_lengths_that_count_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=r"^--loss PNPLoss fails with --miner hard: .*indices_tuple") as caught:
        criterion("PNPLoss", "hard")
    assert "\n" not in str(caught.value)
    capsys.readouterr()
    for name in (*SHORT, "CircleLoss", "SoftTripleLoss", "MarginLoss"):
        criterion(name)
    assert capsys.readouterr().err == ""
    for name in ("LargeMarginSoftmaxLoss", "SphereFaceLoss", "AngularLoss"):
        criterion(name)
        assert f"--loss {name} sees the length of embeddings" in capsys.readouterr().err


def test_building_draws_what_it_drew_before_every_loss_was_tried() -> None:
    torch.manual_seed(0)
    expected = losses.ProxyAnchorLoss(num_classes=CLASSES, embedding_size=DIM).proxies
    following = torch.rand(1)
    assert torch.equal(criterion("proxy_anchor").state_dict()["loss.proxies"], expected)
    assert torch.equal(torch.rand(1), following)


@pytest.mark.parametrize("name", SHORT)
def test_loss_is_lowered_by_its_gradients(name: str) -> None:
    """Only the embeddings move, so the loss's own parameters cannot be what lowers it."""
    loss, (embeddings, labels) = criterion(name), batch()
    loss(embeddings, labels).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert bool(list(loss.parameters())) == loss.classifies == (not LOSSES[name].needs_pairs)
    loss, optimizer = criterion(name, "none").requires_grad_(False), torch.optim.Adam([embeddings], lr=0.05)
    first = loss(embeddings, labels)
    assert first.shape == ()
    for step in range(10):
        optimizer.zero_grad()
        loss(embeddings, labels).backward()
        assert embeddings.grad is not None
        assert step or (embeddings.grad.abs().sum(1) > 0).all()
        optimizer.step()
    assert loss(embeddings, labels).item() < 0.95 * first.item()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"no_such_option": 1.0}) for name in [*SHORT, "P2SGradLoss", "CosFaceLoss"]),
        *(("softmax", {"label_smoothing": x}) for x in (2.0, -0.1)),
    ],
)
def test_options_that_a_loss_refuses_give_one_line(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"^--loss-options .*{name} refuses them .*{next(iter(options))}") as caught:
        criterion(name, **options)
    assert "\n" not in str(caught.value)


def test_options_reach_the_loss_and_default_margins_hold() -> None:
    default, usual, wide = criterion("triplet"), criterion("triplet", margin=0.2), criterion("triplet", margin=0.5)
    assert default(*batch()) == usual(*batch()) < wide(*batch())


@pytest.mark.parametrize("name", MINERS)
def test_miner_chooses_triplets_and_reads_only_torch_s_generator(name: str) -> None:
    values = []
    for numpy_seed in (0, 1):
        np.random.seed(numpy_seed)  # noqa: NPY002
        mined = criterion("triplet", name)
        torch.manual_seed(1)
        values.append(mined(*batch()))
    assert torch.equal(values[0], values[1])
    if name.islower():
        assert values[0] > 0
        assert not torch.isclose(values[0], criterion("triplet", "none")(*batch()))


@pytest.mark.parametrize("miner", ["semihard", "multi_similarity"])
def test_batches_of_which_a_miner_takes_nothing_are_counted(miner: str) -> None:
    loss, (embeddings, labels) = criterion("triplet", miner), batch()
    state = loss.state_dict()
    loss(embeddings, labels)
    assert loss.share_without_pairs == 0
    assert loss(torch.eye(DIM)[labels], labels) == 0
    assert loss.share_without_pairs == 0.5
    loss.load_state_dict({name: value for name, value in state.items() if name != "mined"})  # an earlier version's
    assert loss.share_without_pairs == 0


def test_default_miners() -> None:
    hard, semihard = (criterion("triplet", name)(*batch()) for name in ("hard", "semihard"))
    assert hard > semihard
    assert criterion("triplet", "none").miner is None
    assert criterion("proxy_anchor").miner is None
    for name in ("triplet", "multi_similarity"):
        assert torch.equal(criterion(name)(*batch()), criterion(name, LOSSES[name].miner)(*batch()))


@pytest.mark.parametrize("name", [name for name in SHORT if not LOSSES[name].needs_pairs])
def test_logits_are_largest_for_the_class_that_lowers_the_loss(name: str) -> None:
    loss = criterion(name).eval()
    embedding = torch.randn(1, DIM, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        losses = [loss(embedding, torch.tensor([label])).item() for label in range(CLASSES)]
        assert loss.logits(embedding).argmax().item() == int(np.argmin(losses))


def test_autolr_head_has_the_documented_size_and_initialisation() -> None:
    torch.manual_seed(0)
    head = autolr_head(2048, 100)
    bottleneck, norm, activation, dropout, classifier = head
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_050_112 + 513 * 100
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
    assert isinstance(criterion("softmax", head="autolr").loss.head, nn.Sequential)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_softmax_is_cross_entropy_of_its_layer(smoothing: float) -> None:
    embeddings, labels = batch()
    loss = SoftmaxLoss(CLASSES, DIM, label_smoothing=smoothing)
    assert isinstance(loss.head, nn.Linear)
    log_share = (embeddings @ loss.head.weight.T + loss.head.bias).log_softmax(1)
    expected = -((1 - smoothing) * log_share[torch.arange(16), labels] + smoothing * log_share.mean(1)).mean()
    torch.testing.assert_close(loss(embeddings, labels), expected)
