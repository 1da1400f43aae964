"""The shapes of everything that the network computes for a text, for the picture of the network.

B = 1 text, T tokens with padding, C = n_embd, H = n_head, D = C / H, K outputs of the head.
"""

from gpt2_from_scratch.classifier.classifier import Classifier
from gpt2_from_scratch.speed.batching import pad_batch


def arrows(classifier: Classifier, text: str) -> dict[str, list[int]]:
    """Return the shape of each intermediate result for a text, by the name of its arrow.

    Every block has the same shapes. They are those of the plain network. The classifier itself
    computes the last block only at the position that the head reads.
    """
    config, description = classifier.model.config, classifier.description
    (ids,), _ = classifier.encode([text])
    padded, _ = pad_batch([ids], classifier.tokenizer.end_of_text_id, description.pad_to)
    T, C, H = padded.shape[1], config.n_embd, config.n_head
    head = description.head
    n_outputs = head.n_outputs or (config.n_vocab if head.task == "language" else C)
    rows = [1] if head.reads_one_state else [1, T]
    state = [1, T, C]
    return {
        "ids": [1, T],
        "embedded": state,
        "ln_1": state,
        "qkv": [1, T, 3 * C],
        "scores": [1, H, T, T],
        "mixed": [1, H, T, C // H],
        "attn": state,
        "ln_2": state,
        "c_fc": [1, T, 4 * C],
        "gelu": [1, T, 4 * C],
        "mlp": state,
        "block": state,
        "ln_f": state,
        "read": [*rows, C],
        "logits": [*rows, n_outputs],
    }
