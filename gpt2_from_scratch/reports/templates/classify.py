"""Classify texts with the ONNX files in this folder: python classify.py "See you at six"

Without arguments, the texts are the lines of standard input. Each answer is one line of JSON.
Needs: pip install onnxruntime tokenizers
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

FOLDER = Path(__file__).resolve().parent
MODEL = "model.onnx"  # or model_int8.onnx

tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))  # it also cuts and pads
session = InferenceSession(str(FOLDER / MODEL), providers=["CPUExecutionProvider"])
heads = json.loads((FOLDER / "classifier.json").read_text("utf-8"))["heads"]


def classify(texts: list[str]) -> list[dict[str, Any]]:
    """Answer texts: one dictionary per text, with one answer per head."""
    encoded = tokenizer.encode_batch(texts)
    given = {
        "input_ids": np.array([each.ids for each in encoded], np.int64),
        "attention_mask": np.array([each.attention_mask for each in encoded], np.int64),
    }
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, given), strict=True))
    answers: list[dict[str, Any]] = [{} for _ in texts]
    for head in heads:
        what = "values" if head["task"] == "regression" else "probabilities"
        for n, row in enumerate(found[head["outputs"][what]]):
            answers[n][head["name"]] = answer(head, row, texts[n], encoded[n])
    return answers


def answer(head: dict[str, Any], row: np.ndarray, text: str, encoded: Any) -> Any:
    """One head's answer to one text, from its probabilities (K,) or (tokens, K), or its values (K,)."""
    labels = head["labels"]
    if head["task"] == "token-classification":  # the first token of a word decides
        tags = []
        for word in re.finditer(r"\S+", text):
            ends = (end for _, end in encoded.offsets)  # 0 at padding
            first = next((n for n, end in enumerate(ends) if end > word.start()), None)
            tags.append([word[0], None if first is None else labels[row[first].argmax()]])
        return tags
    numbers = dict(zip(labels, row.tolist(), strict=True))
    if head["task"] == "regression":
        return numbers
    if head["task"] == "multi-label":
        limits = head.get("thresholds", [0.5] * len(labels))
        above = zip(labels, row > np.array(limits), strict=True)
        chosen = [label for label, is_above in above if is_above]
        return {"labels": chosen, "probabilities": numbers}
    return {"label": labels[row.argmax()], "probabilities": numbers}


if __name__ == "__main__":
    for text in sys.argv[1:] or (line.rstrip("\r\n") for line in sys.stdin):
        print(json.dumps(classify([text])[0], ensure_ascii=False), flush=True)
