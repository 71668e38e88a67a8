"""Look into a checkpoint before training on it: what it is, the config lines that fit it, and
with an image the classes that it sees there.
"""

import argparse
import sys
from collections.abc import Sequence

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")

from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.models.classifiers.rope_vit_classifier import load_classifier
from ropevit_mmdet.weights.checkpoint import read_checkpoint
from ropevit_mmdet.weights.inspection import choose_archs, config_lines, facts
from ropevit_mmdet.weights.lookup import resolve_weights


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with one_line_errors():
        path = resolve_weights(args.file)
        checkpoint = read_checkpoint(path)
        archs = choose_archs(checkpoint, args.arch)
        for word, fact in facts(checkpoint, archs):
            print(f"{word:14}{fact}")
        if checkpoint.origin == "birder":
            print_config(checkpoint, archs, args.file)
        if args.image:
            print_classes(args.file, args.image, args.arch, args.top)


def print_config(checkpoint, archs, source: str) -> None:
    if not archs:
        print("\nno config lines: spell the architecture out with arch=dict(...)")
        return
    name, *others = archs
    print("\n# on top of configs/ropevit_maskrcnn.py")
    if others:
        print(f"# the weights cannot tell {name} from {' or '.join(others)}: choose with --arch")
    print(config_lines(checkpoint, archs[name], source))


def print_classes(checkpoint: str, image: str, arch: str | None, top: int) -> None:
    net = load_classifier(checkpoint, arch)
    probabilities = net.probabilities(net.preprocess(image))[0]
    print(f"\n{image}")
    values, indices = probabilities.topk(min(top, net.num_classes))
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        name = net.class_names[index] if net.class_names else f"class {index}"
        print(f"  {value:7.2%}  {name}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", help="a checkpoint: a path, a URL or birder://NAME")
    parser.add_argument("--image", metavar="IMAGE", help="print the classes that it sees there")
    parser.add_argument("--arch", metavar="NAME", help="its architecture, where it is not clear")
    parser.add_argument("--top", type=int, default=5, help="classes to print (default 5)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
