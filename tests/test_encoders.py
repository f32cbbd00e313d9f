"""SASRec: causal, blind to padding, faithful to the paper's block."""

import pytest
import torch
from torch import nn

from gsas_lab.encoders import Dropout, SASRec
from gsas_lab.errors import InputError

VARIANTS = ["paper", "modern"]


def model(variant, **changes):
    torch.manual_seed(0)
    settings = {"d": 8, "blocks": 2, "heads": 2, "max_length": 6, "variant": variant, **changes}
    built = SASRec(20, **settings)
    for parameter in built.parameters():  # nothing is zero or one by chance of the start
        nn.init.normal_(parameter, std=0.5)
    return built.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_never_leaks_and_never_becomes_nan(variant):
    sasrec = model(variant)
    short, padded = torch.tensor([[3, 4]]), torch.tensor([[3, 4, 0, 0], [0, 0, 0, 0]])
    hidden = sasrec(padded)
    torch.testing.assert_close(hidden[:1, :2], sasrec(short))
    assert torch.isfinite(hidden).all()
    torch.testing.assert_close(sasrec.score(padded[:1]), sasrec.score(short))
    poisoned = model(variant)
    with torch.no_grad():
        poisoned.item_embedding.weight[0] = 1e6
    torch.testing.assert_close(poisoned(padded)[:1, :2], sasrec(short))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_last_hidden_state_alone_is_that_of_the_whole_sequence(variant, blocks):
    sasrec = model(variant, blocks=blocks)
    items = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 0, 0, 0, 0]])
    whole = sasrec(items)[torch.arange(3), torch.tensor([4, 1, 0])]
    torch.testing.assert_close(sasrec.last_hidden(items), whole)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_position_sees_nothing_to_its_right_and_something_to_its_left(variant):
    sasrec = model(variant)
    one, other = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 9]])
    torch.testing.assert_close(sasrec(one)[:, :3], sasrec(other)[:, :3])
    first = torch.tensor([[9, 2, 3, 4]])
    assert (sasrec(one)[:, 3] - sasrec(first)[:, 3]).abs().max() > 1e-3


def test_positions_count_back_from_the_last_item_as_in_the_left_padded_form():
    sasrec = model("paper")
    shifted = model("paper")
    with torch.no_grad():  # only the last two positions may matter to a history of two
        shifted.position_embedding.weight[:4] += 100
    two = torch.tensor([[3, 4]])
    torch.testing.assert_close(sasrec(two), shifted(two))
    with torch.no_grad():
        shifted.position_embedding.weight[4:] += torch.randn(2, 8)
    assert (sasrec(two) - shifted(two)).abs().max() > 1e-3


def literal_paper_block(block, x):
    """Query = LN(x), key and value un-normed, + query, LN, feed-forward with ReLU, + residual."""
    t, d = x.shape[1], x.shape[2]
    query_in = block.attention_norm(x)
    weights, biases = block.query_key_value.weight.split(d), block.query_key_value.bias.split(d)
    query, key, value = (
        given @ weight.T + bias
        for given, weight, bias in zip((query_in, x, x), weights, biases, strict=True)
    )
    mixed = []
    for q, k, v in zip(
        query.chunk(block.heads, -1), key.chunk(block.heads, -1), value.chunk(block.heads, -1),
        strict=True,
    ):  # fmt: skip
        logits = q @ k.transpose(1, 2) / k.shape[-1] ** 0.5
        logits = logits.masked_fill(torch.ones(t, t).triu(1).bool(), -torch.inf)
        mixed.append(logits.softmax(-1) @ v)
    x = block.forward_norm(torch.cat(mixed, -1) + query_in)
    return x + block.contract(torch.relu(block.expand(x)))


def test_the_papers_block_is_the_papers_block():
    block = model("paper").blocks[0]
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), literal_paper_block(block, x))
    names = dict(block.named_parameters())
    assert not any(name.startswith("output") for name in names), "no output projection"
    assert block.expand.weight.shape == (8, 8), "feed-forward of width d"


def test_tied_bias_and_padding_column():
    tied, own = model("modern", tied=True), model("modern", tied=False)
    assert tied.table is tied.item_embedding.weight
    assert own.table is not own.item_embedding.weight
    items = torch.tensor([[1, 2]])
    biased = model("modern", bias=0.0)
    plain = biased.score(items)
    with torch.no_grad():
        biased.bias += 2
    torch.testing.assert_close(biased.score(items)[:, 1:], plain[:, 1:] + 2)
    assert plain[0, 0] == -torch.inf and plain.shape == (1, 21)


def test_dropout_keeps_the_mean_drops_the_share_and_draws_from_its_generator():
    drop, x = Dropout(0.25), torch.ones(200_001)
    drop.generator = torch.Generator().manual_seed(0)
    dropped = drop(x)
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.005)
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert not torch.equal(drop(x), dropped)
    drop.generator.manual_seed(0)
    assert torch.equal(drop(x), dropped)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packed_histories_get_the_hidden_states_that_they_get_alone(variant, training):
    sasrec = model(variant, dropout=0.0).train(training)
    histories = [[1, 2, 3], [4, 5, 6, 7], [8], [9, 10], [11, 12, 13, 14, 15, 16]]
    items = torch.tensor([[1, 2, 3, 8, 9, 10], [4, 5, 6, 7, 0, 0], [11, 12, 13, 14, 15, 16]])
    segments = torch.tensor([[1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 0, 0], [1] * 6])
    positions = torch.tensor([[3, 4, 5, 5, 4, 5], [2, 3, 4, 5, 0, 0], [0, 1, 2, 3, 4, 5]])
    packed = sasrec(items, positions, segments)
    assert torch.isfinite(packed).all()
    for history in histories:
        alone = sasrec(torch.tensor([history]))[0]
        torch.testing.assert_close(packed[torch.isin(items, torch.tensor(history))], alone)


def test_wrong_shapes_are_refused():
    with pytest.raises(InputError, match="heads = 3"):
        model("paper", heads=3)
    with pytest.raises(InputError, match="Block 'post'"):
        model("post")
