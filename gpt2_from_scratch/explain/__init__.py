"""Why a classifier gives an answer: what matters in a text, and what each part of GPT-2 adds.

`tokens` and `gradients` say which tokens and words matter, `attribution` what each head and block
contributes to a logit, and `lenses` what each layer would answer. Each docstring names the limits of
its method.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attribution": [
            "Attention",
            "Contributions",
            "attention",
            "attention_weights",
            "contributions",
        ],
        "lenses": ["AnswerByLayer", "NextTokens", "answer_by_layer", "next_tokens", "tuned_lenses"],
        "tokens": ["Explanation", "Part", "after_each_token", "leave_one_out"],
        "gradients": ["gradient_times_input", "integrated_gradients"],
    },
)
