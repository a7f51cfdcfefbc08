"""Everything that the doctor can find, most severe first."""

from fanet_lightning.diagnosis.findings import Kind

# Fewer pixels than one are no face; below eight even S3FD's smallest anchor (16 pixels) overlaps by less than a half.
TINY_PIXELS = 1.0
SMALL_PIXELS = 8.0

KINDS: tuple[Kind, ...] = (
    Kind(
        "missing_image",
        "error",
        "Labels name an image that is not there.",
        "Fetch the image, or take its labels out.",
        mended_by_fix=True,
    ),
    Kind("empty_file", "error", "The file has no bytes.", "Fetch the image again.", mended_by_fix=True),
    Kind("not_image", "error", "The file is no image.", "Fetch the image again.", mended_by_fix=True),
    Kind("truncated", "error", "The file was cut off.", "Fetch the image again.", mended_by_fix=True),
    Kind("unreadable", "error", "The image cannot be decoded.", "Fetch or convert the image.", mended_by_fix=True),
    Kind(
        "mis_sized",
        "error",
        "The labels state another size than the file has: they were drawn on another picture.",
        "Find the picture that was labelled, or scale the labels.",
    ),
    Kind(
        "mis_rotated",
        "error",
        "The labels fit the image only when it is turned.",
        "Turn the image or the labels; remove the camera's orientation from the file.",
    ),
    Kind(
        "malformed_label", "error", "Something in a label file is no label.", "Mend the line named.", mended_by_fix=True
    ),
    Kind(
        "label_convention",
        "error",
        "Most boxes leave their images or are below a pixel: their numbers are not what the format has.",
        "Write them as the format has them, or set data.format to what they are.",
    ),
    Kind(
        "labelled_twice",
        "error",
        "The labels name the same image more than once.",
        "Join the boxes under one name.",
        mended_by_fix=True,
    ),
    Kind(
        "leak",
        "error",
        "The same file is trained and validated on.",
        "Take it out of the training part.",
        mended_by_fix=True,
    ),
    Kind(
        "label_not_finite",
        "error",
        "A box has a coordinate that is no number.",
        "Label the face again.",
        mended_by_fix=True,
    ),
    Kind(
        "label_outside",
        "error",
        "A box lies wholly outside the image.",
        "Label the face again, or take the box out.",
        mended_by_fix=True,
    ),
    Kind(
        "letter_case",
        "warning",
        "The labels name the image in other letter case than the file: it is read here and missing in other programs.",
        "Rename the file as the labels have it.",
        mended_by_fix=True,
    ),
    Kind(
        "near_leak",
        "warning",
        "An image trained on is nearly one that is validated on: a copy, a crop or the next frame.",
        "Look at the pair; take the image out of the training part.",
        mended_by_fix=True,
    ),
    Kind(
        "label_partly_outside",
        "warning",
        "A box reaches out of the image by more than a pixel.",
        "Clip it to the image.",
        mended_by_fix=True,
    ),
    Kind(
        "label_without_area",
        "warning",
        "A box has no width or no height, or a negative one: no face that could be found.",
        "Label the face again, or take the box out.",
        mended_by_fix=True,
    ),
    Kind(
        "label_doubled",
        "warning",
        "Two boxes of an image are the same or nearly so (IoU above 0.95): one of them can only count as a miss.",
        "Keep one of them.",
        mended_by_fix=True,
    ),
    Kind(
        "label_tiny",
        "warning",
        "A face is less than a pixel wide or high.",
        "Label the face again, flag it as ignored, or take it out.",
    ),
    Kind(
        "duplicate",
        "warning",
        "The same file occurs twice in the training part, so it counts double.",
        "Keep one of them.",
        mended_by_fix=True,
    ),
    Kind(
        "duplicate_in_val",
        "warning",
        "The same file occurs twice in the validation part, so it counts double.",
        "Keep one of them, if the benchmark is yours to change.",
    ),
    Kind(
        "damaged_image",
        "warning",
        "The decoder found damage and went on: a part of the picture may be grey, shifted or of wrong colours.",
        "Look at it; fetch it again.",
    ),
    Kind("blank_image", "warning", "The image shows one colour alone.", "Look at it; fetch it again."),
    Kind(
        "near_duplicate",
        "note",
        "Two images of a part are nearly the same: a copy, a crop or the next frame.",
        "Look at the pair; keep both or one.",
    ),
    Kind(
        "orientation",
        "note",
        "The camera's orientation stands in the file and the labels fit the upright image, or say that they do not.",
        "Nothing to do here; programs that ignore it see the image turned.",
    ),
    Kind("unlabelled_image", "note", "No label speaks of this file.", "Label it, or take it out of the folder."),
    Kind("no_faces", "note", "The image has no face to train on.", "Nothing to do: it is trained on as background."),
)

BY_NAME = {kind.name: kind for kind in KINDS}
