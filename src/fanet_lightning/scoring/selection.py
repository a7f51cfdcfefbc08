"""A part of a ground truth: where its images stand in the whole."""

from collections.abc import Iterable, Sequence


def places_of(wanted: Sequence[str], image_ids: Iterable[str]) -> list[int]:
    """The place of each wanted image among ``image_ids``, in the order of ``wanted``.

    Raises:
        ValueError: an image id that is not there.
    """
    place = {image_id: i for i, image_id in enumerate(image_ids)}
    unknown = [image_id for image_id in wanted if image_id not in place]
    if unknown:
        raise ValueError(f"{len(unknown)} image ids are not in the ground truth, the first is '{unknown[0]}'")
    return [place[image_id] for image_id in wanted]
