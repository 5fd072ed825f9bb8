"fmtut: how foundation models are made and used, as a course and a package."

__version__ = "0.1.0"

# What `import fmtut` offers, each loaded on first use: name -> module.
LAZY = {
    "doctor": "environment", "Tagger": "ner",
    "check": "exercises", "hint": "exercises", "solution": "exercises", "quiz": "exercises", "progress": "exercises",
}


def __getattr__(name):
    if name not in LAZY:
        raise AttributeError(f"module 'fmtut' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fmtut.{LAZY[name]}"), name)


def __dir__():
    return [*globals(), *LAZY]
