"""The categories of an annotation file against the classes of a config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ropevit_mmdet.datasets.validation.annotations import is_id


def check_classes(path: Path, content: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Raises ValueError if a file's category names do not give the labels of the classes.

    mmdet would leave objects of a further name out without a word: mostly a class that was
    forgotten. A further name without objects, such as the heading that some programs write over the
    others, does no harm. What is no object or category is passed over: `check_annotations` tells.
    """
    names = [one["name"] for one in content["categories"] if _has_name(one)]
    more = [name for name in names if name not in classes]
    if more:
        objects = _annotated_names(content)
        more = [name for name in more if name in objects]
    if not more and [name for name in names if name in classes] == list(classes):
        return
    missing = [name for name in classes if name not in names]
    fix = "set metainfo = dict(classes=(...)) in the config to the names of the file, in its order"
    if len(missing) == len(classes):
        problem = "share no name with the config's classes"
    elif len(set(names)) < len(names):
        problem = "have a name several times, and labels would shift against the config's classes"
    elif missing:
        problem = f"lack {_listed(missing)} of the config's classes"
    elif more:
        problem = f"have {_listed(more)}, with objects, beside the config's classes"
        fix += ", or take the objects that are not to be learned out of the file"
    else:
        problem = "have another order than the config's classes, and labels go by the file's"
    raise ValueError(
        f"the categories of {path} ({_listed(names)}) {problem} ({_listed(classes)}); {fix}"
    )


def _annotated_names(content: Mapping[str, Any]) -> set[str]:
    """The names of the categories that objects belong to."""
    objects = content.get("annotations") or []
    ids = [one.get("category_id") for one in objects if isinstance(one, dict)]
    used = {number for number in ids if is_id(number)}
    return {
        one["name"]
        for one in content["categories"]
        if _has_name(one) and is_id(one.get("id")) and one["id"] in used
    }


def _has_name(category: Any) -> bool:
    return isinstance(category, dict) and isinstance(category.get("name"), str)


def _listed(names: Sequence[str], at_most: int = 6) -> str:
    more = f", ... {len(names)} in all" if len(names) > at_most else ""
    return ", ".join(map(repr, names[:at_most])) + more
