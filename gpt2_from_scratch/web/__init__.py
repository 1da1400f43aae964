"""The local page and the JSON API of `gpt2-classifier serve`; it computes nothing itself.

`app` answers requests with the functions of the other rooms. `static/` is the page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={})
