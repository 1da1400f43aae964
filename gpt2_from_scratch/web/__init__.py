"""The local page and the JSON API of `gpt2-classifier serve`; it computes nothing itself.

`operations` lists what the API answers, with the functions of the other rooms, and `sources` the code
that the page shows. `app` receives requests and refuses bad ones, and `server` runs it. `static/` is
the page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "app": ["make_app"],
        "models": ["Model", "load_models"],
        "server": ["serve"],
    },
)
