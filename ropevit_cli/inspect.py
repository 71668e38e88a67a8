"""Print what a checkpoint is, the config lines that fit it, and the classes of an image."""

import argparse

HELP = "print what a checkpoint is and the config lines that fit it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a path, a URL, birder://NAME, timm://NAME or hf://O/R/FILE")
    parser.add_argument("--image", metavar="IMAGE", help="print the classes predicted for it")
    parser.add_argument("--arch", metavar="NAME", help="its architecture, where several fit")
    parser.add_argument("--top", type=int, default=5, help="classes to print (default: 5)")


def run(args: argparse.Namespace) -> None:
    from ropevit_mmdet.weights.checkpoint import read_checkpoint
    from ropevit_mmdet.weights.hub import resolve_weights
    from ropevit_mmdet.weights.inspection import choose_archs, config_lines, describe

    checkpoint = read_checkpoint(resolve_weights(args.file))
    archs = choose_archs(checkpoint, args.arch)
    for word, text in describe(checkpoint, archs):
        print(f"{word:14}{text}")
    if checkpoint.origin != "mmengine" and archs:
        name, *others = archs
        print("\n# on top of configs/ropevit_maskrcnn.py")
        if others:
            print(f"# the weights fit {' and '.join(archs)}: choose with --arch")
        print(config_lines(checkpoint, archs[name], args.file))
    elif checkpoint.origin != "mmengine":
        print("\nno config lines: set the architecture with arch=dict(...)")
    if args.image:
        _print_classes(args)


def _print_classes(args: argparse.Namespace) -> None:
    from ropevit_mmdet import load_classifier

    net = load_classifier(args.file, args.arch)
    probabilities = net.probabilities(net.preprocess(args.image))[0]
    values, indices = probabilities.topk(min(args.top, net.num_classes))
    print(f"\n{args.image}")
    for value, index in zip(values.tolist(), indices.tolist(), strict=True):
        name = net.class_names[index] if net.class_names else f"class {index}"
        print(f"  {value:7.2%}  {name}")
