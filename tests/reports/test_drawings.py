"""Drawings show what they were given: shapes, counts, colours, weights, padding and tokens."""

import io
from collections import Counter

import numpy as np
import pytest
import torch
from legible import nothing_leaves, nothing_small, overlapping, words
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from gpt2_from_scratch.classifier.freezing import LedgerLine, ledger, set_trainable
from gpt2_from_scratch.classifier.heads import replace_head
from gpt2_from_scratch.errors import DataError, UsageError
from gpt2_from_scratch.explain.attribution import Contributions
from gpt2_from_scratch.explain.lenses import AnswerByLayer, NextTokens
from gpt2_from_scratch.gpt2.config import SIZES, GPT2Config
from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.reports.drawings import (
    FROZEN,
    GREY,
    PAD,
    PARTLY,
    REAL,
    TRAINABLE,
    draw_answer_by_layer,
    draw_architecture,
    draw_attention,
    draw_batches,
    draw_contributions,
    draw_heads_by_token,
    draw_label_by_token,
    draw_ledgers,
    draw_next_tokens,
    draw_outputs,
    parameter_counts,
)

MINI = GPT2Config(n_vocab=4096, n_ctx=384, n_embd=256, n_head=4, n_layer=6)


def said(figure: Figure) -> list[str]:
    return [text.get_text() for text, _ in words(figure)]


def pixels(figure: Figure) -> np.ndarray:
    """(height, width, 3), from 0 to 1"""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def has(image: np.ndarray, colour: str) -> int:
    """The number of pixels with this colour."""
    return int((np.abs(image - to_rgb(colour)).max(-1) < 0.02).sum())


def legible(figure: Figure) -> bool:
    assert not overlapping(figure)
    return nothing_leaves(figure) and nothing_small(figure)


def line(numbers: int, trainable: int, part: str) -> LedgerLine:
    return LedgerLine(part, numbers, trainable)


# --- the network ---


def test_the_network_bottom_to_top():
    figure = draw_architecture(MINI, 2)
    left = [(round(b.y0), t.get_text()) for t, b in words(figure) if b.x1 < 340]
    assert [text for _, text in sorted(left) if text != "+"] == [
        "token ids",
        "(B, T)",
        "wpe (position)\n98,304",
        "wte (token)\n1,048,576",
        "(B, T, C = 256)",
        "blocks.0\n789,760",
        "⋮   6 blocks in total",
        "blocks.5\n789,760",
        "(B, T, C = 256)",
        "ln_f   512",
        "(B, T, C = 256)",
        "head   514",
        "(B, T, K = 2)",
        "logits",
    ]
    assert "GPT-2 as a classifier of 2 classes: 5,886,466 parameters" in said(figure)


def test_one_block_opened_up():
    figure = draw_architecture(SIZES["124M"])
    right = [(b.y0, t.get_text()) for t, b in words(figure) if b.x0 > 440 and b.y1 < 830]
    boxes = [text for _, text in sorted(right) if "(B" not in text and ":" not in text[:5]]
    assert boxes == [
        "ln_1   1,536",
        "c_attn   1,771,776",
        "12 heads: softmax(q kᵀ / √D) v",
        "c_proj   590,592",
        "ln_2   1,536",
        "c_fc   2,362,368",
        "GELU",
        "c_proj   2,360,064",
        "one block: 7,087,872 parameters",
    ]
    everything = said(figure)
    for shape in ("q, k, v: (B, T, 3C = 2,304)", "(B, H = 12, T, D = 64)", "(B, T, V = 50,257)"):
        assert shape in everything
    assert everything.count("(B, T, 4C = 3,072)") == 2
    assert "head   wte again" in everything and "GPT-2: 124,439,808 parameters" in everything


@pytest.mark.slow
@pytest.mark.parametrize("n_layer", [1, 2, 3, 4])
def test_few_blocks_are_all_drawn(n_layer):
    figure = draw_architecture(GPT2Config(277, 32, 32, 4, n_layer), 3)
    texts = [text.get_text() for text in figure.axes[0].texts]
    drawn = [text.split("\n")[0] for text in texts if text.startswith("blocks.")]
    assert drawn == [f"blocks.{n}" for n in range(n_layer) if n_layer < 4 or n in (0, 3)]
    boxes = sum(isinstance(patch, FancyBboxPatch) for patch in figure.axes[0].patches)
    # embeddings, blocks, ln_f and head, frames, parts of a block
    assert boxes == 2 + len(drawn) + 2 + 3 + 8


@pytest.mark.parametrize(
    ("config", "num_classes"), [(GPT2Config(277, 32, 32, 4, 1), 10), (SIZES["1558M"], None)]
)
def test_the_network_is_legible(config, num_classes):
    assert legible(draw_architecture(config, num_classes))


def test_numbers_of_the_parts_are_those_of_the_model(tiny_config):
    model = GPT2(tiny_config)
    replace_head(model, 3)
    numbers = parameter_counts(tiny_config, 3)
    named = dict(model.blocks[0].named_modules()) | dict(model.named_children())
    named["block"] = model.blocks[0]
    for part, count in numbers.items():
        assert count == sum(p.numel() for p in named[part].parameters()), part
    assert parameter_counts(tiny_config)["head"] == 0


def test_one_class_is_refused():
    with pytest.raises(UsageError, match="num_classes = 1"):
        draw_architecture(MINI, 1)


# --- what is trainable ---


def test_a_ledger_is_stacked_in_the_order_of_the_network():
    model = GPT2(MINI)
    replace_head(model, 2)
    set_trainable(model, 1)
    model.blocks[5].mlp.requires_grad_(False)
    lines = ledger(model)
    (stack,) = draw_ledgers({"what is trained": lines}).axes
    *boxes, below = [text.get_text() for text in stack.texts if text.get_text()]
    assert boxes == [f"{x.part}  {x.parameters:,}" for x in lines]
    assert stack.get_ylim()[0] < stack.get_ylim()[1]  # the first part is at the bottom
    states = [FROZEN] * 7 + [PARTLY] + [TRAINABLE] * 2
    assert [box.get_facecolor()[:3] for box in stack.patches] == [to_rgb(state) for state in states]
    trained = sum(x.trainable for x in lines)
    assert below == f"{trained:,} trainable\n(4.51%)"
    assert stack.get_title() == "what is trained"


def test_ledgers_next_to_one_another():
    model, ledgers = GPT2(MINI), {}
    replace_head(model, 2)
    for blocks in (0, 1, 2, 6):
        set_trainable(model, blocks, final_norm=blocks > 0)
        ledgers[f"{blocks} blocks"] = ledger(model)
    figure = draw_ledgers(ledgers)
    assert [axes.get_title() for axes in figure.axes] == [*ledgers]
    ends = [t.xy[1] for axes in figure.axes for t in axes.texts if t.get_text() == ""]
    # the arrow ends below the lowest trainable part: the head, blocks.5, blocks.4, blocks.0
    assert ends == pytest.approx([9 - 0.45, 7 - 0.45, 6 - 0.45, 2 - 0.45])
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == [
        "trainable",
        "frozen",
    ]
    assert legible(figure)


def test_a_ledger_of_48_blocks_is_legible():
    figure = draw_ledgers({"nothing": [line(7 * 10**6, 0, f"blocks.{n}") for n in range(52)]})
    assert nothing_leaves(figure) and nothing_small(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["frozen"]


@pytest.mark.parametrize("ledgers", [{}, {"nothing": []}])
def test_no_ledger(ledgers):
    with pytest.raises(UsageError, match="no lines"):
        draw_ledgers(ledgers)


# --- from tokens to a label ---


def test_outputs_have_a_box_per_token_and_the_last_one_becomes_a_label():
    outputs = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.25, -1.0], [0.0, 1.0, -0.5]])
    figure = draw_outputs(outputs, ["Do", " you", " have"], ["tech", "sports", "medicine"])
    texts = said(figure)
    assert {"Do", "·you", "·have", "head: 3 outputs"} <= {*texts}
    assert "tech 0.50\nsports 0.25\nmedicine -1.00" in texts
    percents = (100 * outputs[-1].softmax(dim=0)).tolist()
    for name, percent in zip(("tech", "sports", "medicine"), percents, strict=True):
        assert f"{name} {percent:.0f}%" in texts
    bold = [text.get_text() for text, _ in words(figure) if text.get_weight() == "bold"]
    assert bold == [f"sports {percents[1]:.0f}%"] and "argmax: 1\nlabel: sports" in texts
    assert legible(figure)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (0, 3)])
def test_outputs_that_do_not_fit(shape):
    with pytest.raises(DataError, match="need outputs"):
        draw_outputs(torch.zeros(shape), ["a"] * (0 if shape[0] == 0 else 3), ["x", "y", "z"])


# --- where each head looks ---


def attention(H: int, T: int) -> torch.Tensor:
    """Attention weights (H, T, T), as a block computes them."""
    scores = torch.randn(H, T, T, generator=torch.Generator().manual_seed(1))
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf")).softmax(-1)


TOKENS = ["Win", " $", "x", "_", "1", "$", "\n", " free"]


def test_one_panel_per_head():
    weights = attention(5, 8)
    figure = draw_attention(weights, TOKENS)
    panels = [axes for axes in figure.axes if axes.images and axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"Head {n}" for n in range(5)]
    for axes, expected in zip(panels, weights, strict=True):
        cells = axes.images[0].get_array()
        assert np.array_equal(cells.mask, np.triu(np.ones((8, 8)), 1))
        assert np.allclose(cells.filled(0), expected)
        assert axes.get_facecolor()[:3] == to_rgb(GREY)
        for axis in (axes.xaxis, axes.yaxis):
            assert list(axis.get_ticklocs()) == list(range(8))
        # all panels have the same scale
        assert (axes.images[0].norm.vmin, axes.images[0].norm.vmax) == (0, 1)
    labels = Counter(said(figure))
    # left of the rows and below the columns
    assert labels[r"·\$"] == labels["↵"] == labels["·free"] == 2 + 3
    assert any("key" in text for text in labels) and any("query" in text for text in labels)
    assert legible(figure)


@pytest.mark.slow
def test_masked_cells_look_different_from_a_weight_of_0():
    one = np.eye(3)[None]
    image = pixels(draw_attention(one, ["a", "b", "c"]))
    assert has(image, GREY) > 3 * 100 * 100  # three of nine cells are grey
    left = draw_attention(np.full((1, 3, 3), 1 / 3), ["a", "b", "c"])
    assert has(pixels(left), GREY) < 1000  # without a mask, no cell is grey
    assert "grey" not in " ".join(said(left))


@pytest.mark.slow
@pytest.mark.parametrize(("H", "T", "each"), [(12, 20, 1), (1, 60, 2)])
def test_labels_that_fit(H, T, each):
    figure = draw_attention(attention(H, T), [f"tok{n}" for n in range(T)], title="Block 0")
    assert list(figure.axes[0].get_yticks()) == list(range(0, T, each))
    assert figure.axes[0].get_yticklabels()[1].get_text() == f"tok{each}"
    assert nothing_leaves(figure) and nothing_small(figure)
    assert "Block 0 (grey: masked, comes later)" in said(figure)


def test_a_tensor_is_an_array():
    """The same weights also give the same bytes."""
    weights = attention(1, 3)
    png = [picture(draw_attention(w, list("abc"))) for w in (weights, weights.numpy())]
    assert png[0] == png[1]
    draw_attention(weights.bfloat16().requires_grad_(), list("abc"))


@pytest.mark.parametrize(
    ("weights", "tokens", "words"),
    [
        (attention(2, 4), ["a"] * 5, "5 tokens"),
        (attention(2, 4)[0], ["a"] * 4, "4 tokens"),
        (np.zeros((0, 1, 1)), ["a"], "1 tokens"),
        (np.zeros((1, 0, 0)), [], "0 tokens"),
        (np.full((1, 1, 1), np.nan), ["a"], "from 0 to 1"),
        (np.full((1, 1, 1), -2), ["a"], "from 0 to 1"),
    ],
)
def test_invalid_attention(weights, tokens, words):
    with pytest.raises(DataError, match=words):
        draw_attention(weights, tokens)


# --- the cost of padding ---


def area(axes, colour: str) -> int:
    """The number of cells with this colour in the panel's image."""
    image = axes.images[0]
    colours = image.cmap(image.norm(image.get_array()))[..., :3]  # (rows, T, 3)
    return int((np.abs(colours - to_rgb(colour)).max(axis=-1) < 1e-6).sum())


@pytest.mark.parametrize(
    ("lengths", "size"), [([3, 9, 5], 2), ([4, 4, 4], 8), ([1], 1), (list(range(1, 42)), 7)]
)
def test_pads_are_counted(lengths, size):
    real = sum(lengths)
    boxes = [lengths[n : n + size] for n in range(0, len(lengths), size)]
    cells = [max(lengths) * len(lengths), sum(max(box) * len(box) for box in boxes), real]
    figure = draw_batches(lengths, size)
    for axes, count in zip(figure.axes, cells, strict=True):
        assert area(axes, REAL) == real and area(axes, PAD) == count - real
        reported = (
            f"{count - real:,} of {count:,} cells are padding: {100 * (count - real) / count:.0f}%"
        )
        assert axes.get_title().split("\n")[1] == reported
        assert axes.get_xlim() == (0, max(lengths))
    (frames,) = figure.axes[1].collections
    sizes = [np.ptp(path.vertices, axis=0).tolist() for path in frames.get_paths()]
    assert sizes == [[max(box), len(box)] for box in boxes]
    assert legible(figure)


def test_lengths_from_a_tensor():
    figures = [
        draw_batches(x, 2) for x in ([3, 9, 5], torch.tensor([3, 9, 5]), np.array([3, 9, 5]))
    ]
    assert len({figure.axes[1].get_title() for figure in figures}) == 1


def test_packed_texts_lie_end_to_end():
    axes = draw_batches([3, 9, 5], 2).axes[2]
    assert axes.images[0].get_array().tolist() == [[1] * 9, [1] * 8 + [0]]
    lines = [segment.tolist() for segment in axes.collections[0].get_segments()]
    # after the first text and after the second
    assert lines == [[[3, -0.5], [3, 0.5]], [[3, 0.5], [3, 1.5]]]


@pytest.mark.parametrize(
    ("lengths", "size", "error"), [([], 2, DataError), ([3, 0], 2, DataError), ([3], 0, UsageError)]
)
def test_batches_of_nothing(lengths, size, error):
    with pytest.raises(error, match="nothing to draw|batch_size = 0"):
        draw_batches(lengths, size)


# --- answers token by token ---


def test_a_label_token_by_token():
    figure = draw_label_by_token(TOKENS, [0.1 * n for n in range(8)], "$spam_1$")
    (axes,) = figure.axes
    (half, curve) = axes.lines
    assert np.allclose(curve.get_ydata(), [10 * n for n in range(8)])
    assert list(half.get_ydata()) == [50, 50]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["Win", r"·\$", "x", "_", "1", r"\$", "↵", "·free"]
    assert axes.get_title() == r"P(\$spam_1\$) after each token of the message: 70.0% at the end"
    assert axes.get_ylabel() == r"P(\$spam_1\$) (%)"
    assert legible(figure)


def test_padding_after_a_message_is_shaded():
    """The title has the answer at the end of the message, not after its padding."""
    (axes,) = draw_label_by_token(
        ["a", "b", "(pad)", "(pad)"], [0.1, 0.8, 0.5, 0.4], "spam", pads=2
    ).axes
    assert axes.get_title().endswith("message: 80.0% at the end, 40.0% after the padding")
    (shade,) = [p for p in axes.patches if np.allclose(p.get_facecolor()[:3], to_rgb(PAD))]
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == (1.5, 3.5)
    with pytest.raises(DataError, match="2 tokens of padding among 2"):
        draw_label_by_token(["(pad)"] * 2, [0.5] * 2, "spam", pads=2)


@pytest.mark.parametrize(("T", "shown"), [(1, 1), (40, 40), (200, 67)])
def test_short_and_long_messages(T, shown):
    figure = draw_label_by_token([" a long token indeed"] * T, [0.5] * T, "spam")
    assert len(figure.axes[0].get_xticks()) == shown
    assert legible(figure)


@pytest.mark.parametrize(
    ("tokens", "probabilities"), [([], []), (["a"], [0.1, 0.2]), (["a"], [1.1]), (["a"], [np.nan])]
)
def test_answers_that_do_not_match(tokens, probabilities):
    with pytest.raises(DataError, match="probabilities"):
        draw_label_by_token(tokens, probabilities, "spam")


def picture(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50, metadata={"Software": None})
    return file.getvalue()


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes():
    draw = [
        lambda: draw_architecture(MINI, 2),
        lambda: draw_ledgers({"$x$": [line(10, 0, "$a_1$"), line(5, 5, "b")]}),
        lambda: draw_batches([3, 1, 2], 2),
        lambda: draw_label_by_token(TOKENS, [0.5] * 8, "spam"),
    ]
    for function in draw:
        assert picture(function()) == picture(function())


# --- answers of several heads after each token ---


def test_each_head_has_a_panel_with_its_numbers():
    tokens = ["Hi", " you", "\n", " 5$", " $x"]
    curves = {"P(spam)": [0.1, 0.5, 0.4, 0.2, 0.9], "size": torch.tensor([5.0, -1, 2, 3, 4])}
    figure = draw_heads_by_token(tokens, curves, {"kind": ["a", "b", "a", "c", "a"]}, n_prompt=2)
    first, second, strip = figure.axes
    assert first.lines[0].get_ydata().tolist() == curves["P(spam)"]
    assert second.lines[0].get_ydata().tolist() == [5, -1, 2, 3, 4]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["P(spam)", "size", "kind"]
    assert [t.get_text() for t in strip.get_xticklabels()] == ["Hi", "·you", "↵", r"·5\$", r"·\$x"]
    assert [t.get_text() for t in strip.get_legend().get_texts()] == ["a", "b", "c"]
    cells = [patch.get_facecolor() for patch in strip.patches[:5]]
    assert cells[0] == cells[2] == cells[4] and len(set(cells)) == 3
    for axes in figure.axes:  # each panel shades the prompt
        shade = axes.patches[-1]
        assert (shade.get_x(), shade.get_x() + shade.get_width()) == (-0.5, 1.5)
    assert legible(figure)


@pytest.mark.parametrize(
    ("tokens", "curves"), [(["a", "b"], {"p": [0.1]}), ([], {"p": []}), (["a"], {})]
)
def test_heads_without_a_value_per_token_are_refused(tokens, curves):
    with pytest.raises(DataError, match="one per token|nothing to draw"):
        draw_heads_by_token(tokens, curves)


# --- what each part adds, and what each layer would answer ---


def contributions_of(L: int, H: int, other: str = "ham") -> Contributions:
    numbers = np.random.default_rng(L + H)
    heads, mlps = numbers.normal(size=(L, H)), numbers.normal(size=L)
    total = heads.sum() + mlps.sum() + 0.5 - 0.25 + 2
    return Contributions(["a"], "$x$", other, float(total), 0.5, -0.25, heads, mlps, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize(("L", "H"), [(6, 4), (1, 1), (12, 12)])
def test_each_part_has_a_cell_with_its_number(L, H):
    found = contributions_of(L, H)
    figure = draw_contributions(found)
    upper, lower = (axes for axes in figure.axes if axes.images)
    cells = upper.images[0].get_array()
    assert np.array_equal(cells, np.hstack([found.heads, found.mlps[:, None]]))
    assert lower.images[0].get_array().tolist() == [[0.5, -0.25, 2.0]]
    limits = {image.get_clim() for axes in (upper, lower) for image in axes.images}
    (limits,) = limits  # one scale, with 0 in its middle
    assert limits[1] == -limits[0] == max(abs(cells).max(), 2)
    written = Counter(t.get_text() for axes in (upper, lower) for t in axes.texts)
    numbers = [*cells.flat, 0.5, -0.25, 2.0]
    assert written == Counter(f"{number:+.2f}" for number in numbers)
    assert upper.get_ylim()[1] > upper.get_ylim()[0], "the first block is at the bottom"
    assert [t.get_text() for t in upper.get_yticklabels()] == [f"block {n}" for n in range(L)]
    assert any(f"{found.logit:+.2f}" in t and r"\$x\$ minus" in t for t in said(figure))
    assert legible(figure)


@pytest.mark.slow
def test_many_blocks_have_colours_only():
    figure = draw_contributions(contributions_of(48, 25, other=""))
    upper, lower = (axes for axes in figure.axes if axes.images)
    assert not upper.texts and len(lower.texts) == 3
    assert "minus" not in " ".join(said(figure))
    assert legible(figure)


def test_a_head_that_reads_the_embeddings_has_no_blocks():
    figure = draw_contributions(contributions_of(0, 4))
    assert len([axes for axes in figure.axes if axes.images]) == 1 and legible(figure)


@pytest.mark.parametrize("T", [1, 8, 40])
def test_tables_of_layers(T):
    numbers, shown = np.random.default_rng(T), min(T, 16)
    tokens = [f" tok{n}" for n in range(T)]
    predicted = np.array([[[f" {n}.{t}", "x"] for t in range(T)] for n in range(4)], dtype=object)
    p = numbers.random((4, T, 2))
    following = draw_next_tokens(NextTokens(tokens, np.zeros((4, T, 2)), p, predicted))
    answer = draw_answer_by_layer(AnswerByLayer(tokens, ("ham", "spam"), p[:, -1], p), "spam")
    for figure, values in ((following, p[:, :, 0]), (answer, p[:, :, 1])):
        (axes,) = figure.axes
        assert np.array_equal(axes.images[0].get_array(), values[:, T - shown :])
        assert axes.images[0].get_clim() == (0, 1)
        columns = [t.get_text() for t in axes.get_xticklabels()]
        assert columns == [f"·tok{n}" for n in range(T - shown, T)]
        rows = [t.get_text() for t in axes.get_yticklabels()]
        assert rows == ["embeddings", "block 0", "block 1", "block 2"]
        assert axes.get_ylim()[1] > axes.get_ylim()[0], "the embeddings are at the bottom"
        assert legible(figure)
    first = [t.get_text() for t in following.axes[0].texts]
    assert first == [f"·{n}.{t}" for n in range(4) for t in range(T - shown, T)]
    percents = [f"{100 * value:.0f}" for value in p[:, T - shown :, 1].flat]
    assert [t.get_text() for t in answer.axes[0].texts] == percents


def test_long_predictions_are_cut_to_their_cell():
    predicted = np.full((3, 16, 1), " unbelievable", dtype=object)
    found = NextTokens([" token"] * 16, np.zeros((3, 16, 1)), np.ones((3, 16, 1)), predicted)
    assert legible(draw_next_tokens(found))


def test_a_label_that_no_layer_has():
    found = AnswerByLayer(["a"], ("ham", "spam"), np.ones((1, 2)), np.ones((1, 1, 2)))
    with pytest.raises(DataError, match="'eggs'.*ham, spam"):
        draw_answer_by_layer(found, "eggs")
