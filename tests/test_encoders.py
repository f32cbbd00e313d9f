"""SASRec is causal, BERT4Rec is not; both are blind to padding, with blocks as published."""

import numpy as np
import pytest
import torch
from torch import nn

from gsas_lab.batches import pad_right
from gsas_lab.encoders import BLOCKS, BERT4Rec, SASRec
from gsas_lab.errors import InputError
from gsas_lab.models import Dropout

VARIANTS = list(BLOCKS)


def model(variant, **changes):
    torch.manual_seed(0)
    settings = {"d": 8, "blocks": 2, "heads": 2, "max_length": 6, "block": variant, **changes}
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


def test_the_bert_block_is_torchs_post_norm_encoder_layer():
    block = BLOCKS["bert"](8, 2, 0.0).eval()
    theirs = torch.nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, activation="gelu", batch_first=True, norm_first=False
    ).eval()
    ours = block.state_dict()
    names = {
        "self_attn.in_proj_": "query_key_value.", "self_attn.out_proj.": "output.",
        "linear1.": "expand.", "linear2.": "contract.",
        "norm1.": "attention_norm.", "norm2.": "forward_norm.",
    }  # fmt: skip
    theirs.load_state_dict(
        {a + end: ours[b + end] for a, b in names.items() for end in ("weight", "bias")}
    )
    x = torch.randn(3, 5, 8)
    free = torch.zeros(3, 5, 5)
    torch.testing.assert_close(block(x, free), theirs(x), rtol=1e-4, atol=1e-5)


def test_open_gates_make_the_gated_block_the_modern_one_and_shut_ones_leave_the_input():
    modern, gated = model("modern").blocks[0], model("gated").blocks[0]
    gated.load_state_dict(modern.state_dict(), strict=False)
    x = torch.randn(2, 5, 8)
    assert (gated(x) - modern(x)).abs().max() > 1e-2
    for bias, expected in ((1e4, modern(x)), (-1e4, x)):
        for gate in gated.gates:
            nn.init.zeros_(gate.weight)
            nn.init.constant_(gate.bias, bias)
        torch.testing.assert_close(gated(x), expected)


def bert(variant="modern", **more):
    torch.manual_seed(0)
    return BERT4Rec(20, d=8, heads=2, max_length=6, block=variant, dropout=0.0, **more).eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_bert4rec_asks_for_the_next_item_by_a_masked_place_after_the_last(variant):
    encoder = bert(variant)
    with torch.no_grad():
        encoder.item_embedding.weight[0] += 1  # what stands at a masked place
    histories = [[1, 2, 3], [7], [1, 2, 3, 4, 5], [9, 1, 2, 3, 4, 5]]
    for items in histories:
        masked = torch.tensor([[*items[-5:], 0]])  # six places: one item is too old
        n = masked.shape[1]
        whole = encoder(masked, torch.arange(6 - n, 6)[None], torch.ones_like(masked))
        expected = whole[0, -1] @ encoder.table.T
        alone = encoder.score(torch.tensor([items]))[0]
        torch.testing.assert_close(alone[1:], expected[1:], rtol=1e-4, atol=1e-5)
    together = encoder.score(pad_right([np.array(items) for items in histories], 6))
    for row, items in zip(together, histories, strict=True):
        torch.testing.assert_close(row, encoder.score(torch.tensor([items]))[0])


def test_bert4rec_reads_both_sides_and_nothing_of_its_neighbours_in_a_row():
    encoder = bert()
    items = torch.tensor([[1, 0, 3, 4, 0, 6]])
    positions, segments = torch.tensor([[3, 4, 5, 3, 4, 5]]), torch.tensor([[1, 1, 1, 2, 2, 2]])
    hidden = encoder(items, positions, segments)
    right = items.clone()
    right[0, 2] = 9
    changed = (encoder(right, positions, segments) - hidden).abs().amax(-1)[0]
    assert (changed[:3] > 1e-4).all(), "left of the change as well"
    assert (changed[3:] == 0).all()


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
