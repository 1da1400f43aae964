"""The oracle: GPT-2 in numpy and float64, computed directly from OpenAI's arrays.

It has no code in common with the package. It uses the checkpoint's names and one text at a time;
each line shows `[shape in] -> [shape out]`. Source:
https://github.com/openai/gpt-2/blob/master/src/model.py, in the style of jaymody/picoGPT.
"""

import numpy as np


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # [any] -> [any]


def softmax(x):
    exp_x = np.exp(x - x.max(axis=-1, keepdims=True))  # [T, T] -> [T, T]
    return exp_x / exp_x.sum(axis=-1, keepdims=True)  # [T, T] -> [T, T]


def layer_norm(x, g, b):
    mean = x.mean(axis=-1, keepdims=True)  # [T, C] -> [T, 1]
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)  # [T, C] -> [T, 1]
    return g * (x - mean) / np.sqrt(variance + 1e-5) + b  # [T, C] -> [T, C]


def linear(x, w, b):
    return x @ w[0] + b  # [T, in], [1, in, out], [out] -> [T, out]


def attention(q, k, v):
    T, D = q.shape
    scores = q @ k.T / np.sqrt(D)  # [T, D], [D, T] -> [T, T]
    later = np.arange(T)[None, :] > np.arange(T)[:, None]  # [1, T], [T, 1] -> [T, T]
    return softmax(np.where(later, -np.inf, scores)) @ v  # [T, T], [T, D] -> [T, D]


def multi_head_attention(x, h, n_head):
    qkv = linear(x, h["attn/c_attn/w"], h["attn/c_attn/b"])  # [T, C] -> [T, 3*C]
    q, k, v = np.split(qkv, 3, axis=-1)  # [T, 3*C] -> 3 of [T, C]
    heads = zip(*(np.split(part, n_head, axis=-1) for part in (q, k, v)), strict=True)
    y = np.hstack([attention(*head) for head in heads])  # n_head of [T, D] -> [T, C]
    return linear(y, h["attn/c_proj/w"], h["attn/c_proj/b"])  # [T, C] -> [T, C]


def mlp(x, h):
    y = gelu(linear(x, h["mlp/c_fc/w"], h["mlp/c_fc/b"]))  # [T, C] -> [T, 4*C]
    return linear(y, h["mlp/c_proj/w"], h["mlp/c_proj/b"])  # [T, 4*C] -> [T, C]


def block(x, h, n_head):
    x = x + multi_head_attention(layer_norm(x, h["ln_1/g"], h["ln_1/b"]), h, n_head)
    return x + mlp(layer_norm(x, h["ln_2/g"], h["ln_2/b"]), h)  # [T, C] -> [T, C]


def gpt2(ids, arrays, n_head):
    """The logits of one text: [T] -> [T, V], from {OpenAI's name: array}."""
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    wte, wpe = arrays["model/wte"], arrays["model/wpe"]
    n_layer = sum(name.endswith("/ln_1/g") for name in arrays)
    x = np.array([wte[token] + wpe[t] for t, token in enumerate(ids)])  # [T] -> [T, C]
    for n in range(n_layer):
        start = f"model/h{n}/"
        h = {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)}
        x = block(x, h, n_head)  # [T, C] -> [T, C]
    x = layer_norm(x, arrays["model/ln_f/g"], arrays["model/ln_f/b"])  # [T, C] -> [T, C]
    return x @ wte.T  # [T, C] -> [T, V]
