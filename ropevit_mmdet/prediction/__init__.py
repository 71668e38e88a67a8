"""What a detector finds in pictures: found, drawn, beside the truth."""
