"""Draw what a tested detector takes for what, and its precision over recall, class by class.

RESULT.pkl comes from tools/test.py CONFIG CHECKPOINT --out RESULT.pkl.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import ropevit_mmdet  # noqa: F401  makes the mm packages usable, before all that need them
except ImportError as error:
    sys.exit(f"error: {error}; more is said by: python tools/doctor.py")


from ropevit_mmdet._output import check_output_directory, output_directory
from ropevit_mmdet.apis.ground_truth import read_coco
from ropevit_mmdet.apis.predict import class_names
from ropevit_mmdet.engine.config import add_cfg_options, load_config
from ropevit_mmdet.errors import one_line_errors
from ropevit_mmdet.evaluation.result_file import read_results
from ropevit_mmdet.evaluation.results import (
    IOUS,
    Annotations,
    annotation_file,
    as_json,
    confusion_matrix,
    precision_recall,
)
from ropevit_mmdet.visualization.results_figure import plot_confusion_matrix, plot_precision_recall


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    thresholds = dict(score_thr=args.score_thr, tp_iou_thr=args.tp_iou_thr)
    with one_line_errors():
        check_output_directory(args.out_dir)
        config = load_config(args.config, args.cfg_options)
        names = class_names(config, {})
        results = read_results(args.result)
        annotations = Annotations(read_coco(annotation_file(config)), names)
        matrix = confusion_matrix(results, annotations, **thresholds)
        curves = precision_recall(results, annotations)
        with output_directory(args.out_dir) as directory:
            title = f"scores from {args.score_thr}, IoU from {args.tp_iou_thr}"
            plot_confusion_matrix(matrix, names, directory / "confusion_matrix.png", title)
            plot_precision_recall(curves, directory / "precision_recall.png")
            numbers = json.dumps(as_json(matrix, curves, **thresholds)) + "\n"
            (directory / "results.json").write_text(numbers, encoding="utf-8")
    for index, iou in enumerate(IOUS):
        average = curves.average(index)
        said = "none, there are no objects" if math.isnan(average) else f"{average:.3f}"
        print(f"box AP at IoU {iou}: {said}")
    for name in ("confusion_matrix.png", "precision_recall.png", "results.json"):
        print(Path(args.out_dir) / name)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file of the test")
    parser.add_argument("result", metavar="RESULT.pkl", help="what tools/test.py --out wrote")
    parser.add_argument(
        "--out-dir", default="results", help="directory to write (default: results)"
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        default=0.3,
        help="confusion matrix: leave out lower scores (default: 0.3)",
    )
    parser.add_argument(
        "--tp-iou-thr",
        type=float,
        default=0.5,
        help="confusion matrix: IoU from which a box is that of an object (default: 0.5)",
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
