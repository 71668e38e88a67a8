"""The categories of an annotation file against the classes of a config."""

import json
import mmap
import os
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from ropevit_mmdet.data_checks.annotations import is_id

_CATEGORIES = b'"categories"'


def check_classes(
    path: Path,
    names: Sequence[str],
    classes: Sequence[str],
    annotated: Callable[[], Container[str]],
) -> None:
    """Raises ValueError if a file's category names do not give the labels of the classes.

    mmdet would leave objects of a further name out without a word: mostly a class that was
    forgotten. A further name without objects, such as the heading that some programs write over the
    others, does no harm.

    Args:
        names: in the order of the file.
        annotated: gives those that have objects; asked for where there are further ones.
    """
    more = [name for name in names if name not in classes]
    if more:
        objects = annotated()
        more = [name for name in more if name in objects]
    if not more and [name for name in names if name in classes] == list(classes):
        return
    missing = [name for name in classes if name not in names]
    cure = "set metainfo = dict(classes=(...)) in the config to the names of the file, in its order"
    if len(missing) == len(classes):
        problem = "share no name with the config's classes"
    elif len(set(names)) < len(names):
        problem = "have a name several times, and labels would shift against the config's classes"
    elif missing:
        problem = f"lack {_listed(missing)} of the config's classes"
    elif more:
        problem = f"have {_listed(more)}, with objects, beside the config's classes"
        cure += ", or take the objects that are not to be learned out of the file"
    else:
        problem = "have another order than the config's classes, and labels go by the file's"
    raise ValueError(
        f"the categories of {path} ({_listed(names)}) {problem} ({_listed(classes)}); {cure}"
    )


def annotated_names(content: Mapping[str, Any]) -> set[str]:
    """The names of the categories that objects in an annotation file's content belong to.

    What is no object or category is passed over: `annotations.check_annotations` finds it.
    """
    objects = content.get("annotations") or []
    ids = [one.get("category_id") for one in objects if isinstance(one, dict)]
    used = {number for number in ids if is_id(number)}
    return {
        one["name"]
        for one in content["categories"]
        if has_name(one) and is_id(one.get("id")) and one["id"] in used
    }


def category_names(path: Path) -> list[str]:
    """The names in a COCO annotation file's `categories`, without parsing the rest of it.

    Raises ValueError if the file is cut short or has no such list.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ValueError(f"annotation file {path} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            if not text[-1024:].rstrip().endswith(b"}"):
                raise ValueError(f"annotation file {path} is cut short: it does not end in '}}'")
            start = text.find(_CATEGORIES)
            while start >= 0:
                names = _names_at(text, start + len(_CATEGORIES))
                if names is not None:
                    return names
                start = text.find(_CATEGORIES, start + 1)
    raise ValueError(f"annotation file {path} has no list of categories: is it in COCO's format?")


def has_name(category: Any) -> bool:
    """Whether an entry of a file's `categories` is one that can be called by a name."""
    return isinstance(category, dict) and isinstance(category.get("name"), str)


def _names_at(text: mmap.mmap, position: int) -> list[str] | None:
    """The names of the JSON list after `"categories"`; None if something else stands there."""
    end = position + 4096
    while True:
        chunk = text[position:end].decode("utf-8", errors="replace").lstrip()
        value = chunk[1:].lstrip()
        if not chunk.startswith(":") or not value.startswith("["):
            return None
        try:
            categories, _ = json.JSONDecoder().raw_decode(value)
        except RecursionError:
            return None
        except ValueError:
            if end >= len(text):
                return None
            end = position + 4 * (end - position)
            continue
        names = [one.get("name") for one in categories if isinstance(one, dict)]
        whole = len(names) == len(categories) and all(isinstance(name, str) for name in names)
        return names if whole else None


def _listed(names: Sequence[str], at_most: int = 6) -> str:
    more = f", ... {len(names)} in all" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + more
