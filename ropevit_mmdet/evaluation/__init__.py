"""Evaluation of detections: COCO's metrics, confusion matrix, precision over recall."""
