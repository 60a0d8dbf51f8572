"""Which key somebody meant."""

import difflib

from latentae.config.reflect import SELECTORS, known_keys


def closest_keys(path: str) -> list[str]:
    """The known keys that a misspelt or misplaced dotted key most likely stands for, at most three; or none.

    In this order: `class` for `type` and back, a sibling that differs by a slip, keys elsewhere with its last
    name, exactly or but for a slip, a sibling with these initials (`lr`) or that differs more, a key whose
    whole path is close, keys elsewhere with these initials.
    """
    path = path.replace("-", "_").strip()
    parent, _, name = path.rpartition(".")
    by_name: dict[str, list[str]] = {}
    for known in sorted(known_keys(), key=lambda known: known.count(".")):
        by_name.setdefault(known.rpartition(".")[2], []).append(known)
    siblings = {
        known.rpartition(".")[2]: known for known in known_keys() if known.rpartition(".")[0] == parent
    }
    if name in SELECTORS and (selectors := [siblings[word] for word in SELECTORS if word in siblings]):
        return selectors
    if slip := difflib.get_close_matches(name, siblings, n=1, cutoff=0.8):
        return [siblings[slip[0]]]
    if elsewhere := difflib.get_close_matches(name, by_name, n=1, cutoff=0.8):
        return by_name[elsewhere[0]][:3]
    if initials := [known for word, known in siblings.items() if name == _initials(word)]:
        return initials
    if sibling := difflib.get_close_matches(name, siblings, n=1, cutoff=0.6):
        return [siblings[sibling[0]]]
    others = [known for known in known_keys() if known != parent]
    if whole := difflib.get_close_matches(path, others, n=1, cutoff=0.8):
        return whole
    words = [word for word in by_name if name == _initials(word)]
    return by_name[words[0]][:3] if words else []


def _initials(word: str) -> str | None:
    return "".join(part[0] for part in word.split("_")) if "_" in word else None


def unknown_key(path: str) -> str:
    """The message for a dotted key that the schema does not have, or not with the choices made."""
    if path in known_keys():
        choices = " or ".join(dict.fromkeys(f"`{key.only_with}`" for key in known_keys()[path]))
        return f"unknown key `{path}`: it exists only with {choices}"
    if meant := closest_keys(path):
        return f"unknown key `{path}`; did you mean {' or '.join(f'`{key}`' for key in meant)}?"
    parent = path.rpartition(".")[0]
    siblings = [known for known in known_keys() if known.rpartition(".")[0] == parent]
    if siblings:
        where = f"the keys of `{parent}` are" if parent else "the keys there are"
        return f"unknown key `{path}`; {where} {', '.join(known.rpartition('.')[2] for known in siblings)}"
    return f"unknown key `{path}`; --help lists the keys"
